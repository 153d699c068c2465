// The third example of "Private Networking for AI Agents" (freestyle.sh, 4 June 2026). It ends with a return, so it is
// in a function here.
import { freestyle } from "freestyle";

async function handle() {
const { vmId } = await freestyle.vms.create();

const { identity } = await freestyle.identities.create();
await identity.permissions.vms.grant({ vmId });

const { token } = await identity.tokens.create();

return { token, vmId };
}

console.log(JSON.stringify(await handle()));
