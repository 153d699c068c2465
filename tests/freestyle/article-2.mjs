// The second example of "Private Networking for AI Agents" (freestyle.sh, 4 June 2026), with the import that it leaves
// out.
import { freestyle } from "freestyle";

const { vpc } = await freestyle.vpc.create({
  name: "debuggable-agent-network",
  cidr: "192.168.10.0/24",
});

const connection = await vpc.wireguard.createEphemeral();

console.log(connection.clientConfig);
console.log(connection.sessionId);

// Later, when the operator disconnects:
await connection.close();
