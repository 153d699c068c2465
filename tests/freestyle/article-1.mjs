// The first example of "Private Networking for AI Agents" (freestyle.sh, 4 June 2026), as it is printed there.
import { freestyle } from "freestyle";

const { vpcId } = await freestyle.vpc.create({
  name: "agent-network",
  cidr: "192.168.10.0/24",
});

const { vm: agentVm } = await freestyle.vms.create({
  nics: [
    {
      default: true,
      vpc: vpcId,
      mode: "routed",
      ipv4: "192.168.10.10",
    },
  ],
});

const { vm: workerVm } = await freestyle.vms.create({
  nics: [
    {
      default: true,
      vpc: vpcId,
      mode: "routed",
      ipv4: "192.168.10.11",
    },
  ],
});

await workerVm.exec(
  "nohup python3 -m http.server 8080 --bind 0.0.0.0 >/tmp/http.log 2>&1 &",
);

const response = await agentVm.exec("curl http://192.168.10.11:8080");
console.log(response.stdout);
