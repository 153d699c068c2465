// The client's side of the third example of "Private Networking for AI Agents" (freestyle.sh, 4 June 2026). It has a
// token and no key.
delete process.env.FREESTYLE_API_KEY;
const { TOKEN: token, VM_ID: vmId } = process.env;

import { Freestyle } from "freestyle";

const freestyle = new Freestyle({ accessToken: token });

const { vm } = await freestyle.vms.get({ vmId });
const result = await vm.exec("pwd");
console.log(result.stdout);
