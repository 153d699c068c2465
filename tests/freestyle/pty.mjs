// The client's terminals: they go on while nobody is attached.
import assert from "node:assert/strict";
import { Freestyle, freestyle } from "freestyle";

const { vm, vmId } = await freestyle.vms.create();

// What a terminal shows and how it ends, as it comes.
function watch() {
  const seen = { text: "", exitCode: undefined, closed: false };
  const decoder = new TextDecoder();
  const events = {
    onData: (bytes) => (seen.text += decoder.decode(bytes, { stream: true })),
    onExit: (code) => (seen.exitCode = code),
    onClose: () => (seen.closed = true),
  };
  return { seen, events };
}

async function until(holds, what) {
  for (const end = Date.now() + 20_000; !holds(); ) {
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

const one = watch();
const session = await vm.pty.open({ cols: 100, rows: 30, sessionId: "work", ...one.events });
assert.equal(session.sessionId, "work");
session.write("stty size; echo $((6 * 7))-$TERM; cd /tmp\n");
await until(() => one.seen.text.includes("30 100") && one.seen.text.includes("42-xterm"), one.seen.text);
session.resize({ cols: 90, rows: 20 });
session.write("sleep 0.3; stty size\n");
await until(() => one.seen.text.includes("20 90"), "the new size");
session.write("sleep 1000\n");
await new Promise((wake) => setTimeout(wake, 300));
session.signal("SIGINT");
session.write("echo interrupted=$?\n");
await until(() => one.seen.text.includes("interrupted=130"), "the interrupted command");
const [listed] = (await vm.pty.list()).sessions;
assert.deepEqual([listed.sessionId, listed.running, listed.attachedCount], ["work", true, 1]);
session.detach();
await until(() => one.seen.closed, "the end of the connection");

// Found again as it was left.
const two = watch();
const again = await vm.pty.attach({ sessionId: "work", ...two.events });
await until(() => two.seen.text.includes("interrupted=130"), "what was shown before");
again.write("pwd; exit 5\n");
await until(() => two.seen.exitCode === 5, `exit code 5 after ${two.seen.text}`);
assert.ok(two.seen.text.includes("/tmp"));

// Others.
const three = watch();
const command = await vm.pty.open({ exec: "echo hello; exit 3", ...three.events });
await until(() => three.seen.exitCode === 3, "the end of a command");
assert.match(command.sessionId, /^pty-/);
assert.ok(three.seen.text.includes("hello"));
const four = watch();
await vm.pty.open({ sessionId: "closed", ...four.events, reconnect: false });
assert.equal((await vm.pty.close({ sessionId: "closed" })).sessionId, "closed");
await until(() => four.seen.closed, "a session that was closed");
await assert.rejects(vm.pty.close({ sessionId: "closed" }), /SESSION_NOT_FOUND/);
await assert.rejects(vm.pty.open({ sessionId: "not a name" }));

// As a user, with a token of that user.
await vm.exec("useradd --create-home bob");
const { identity } = await freestyle.identities.create();
await identity.permissions.vms.grant({ vmId, allowedUsers: ["bob"] });
const { token, tokenId } = await identity.tokens.create();
const client = new Freestyle({ accessToken: token, baseUrl: process.env.FREESTYLE_API_URL });
const five = watch();
const bobs = await client.vms.ref({ vmId }).user({ username: "bob" }).pty.open({ ...five.events, reconnect: false });
bobs.write("id -un; tty\n");
await until(() => five.seen.text.includes("bob\r\n") && five.seen.text.includes("/dev/pts/"), "bob's terminal");
await assert.rejects(client.vms.ref({ vmId }).user({ username: "root" }).pty.open({}));
await identity.tokens.revoke({ tokenId });
await until(() => five.seen.closed, "the end of a revoked token's terminal");

await vm.delete();
// Connections that would come back are none of this script's any more.
process.exit(0);
