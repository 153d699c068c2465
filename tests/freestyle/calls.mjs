// Every call of the client that Warren answers, and what it makes of the refusals.
import assert from "node:assert/strict";
import { Errors, Freestyle, VmSpec, freestyle } from "freestyle";

// Fails with this class of the client's errors, or with a plain one that says this.
async function refused(call, expected) {
  const error = await call.then(
    (value) => assert.fail(`was done: ${JSON.stringify(value)}`),
    (error) => error,
  );
  if (expected instanceof RegExp) {
    assert.match(String(error), expected);
    return;
  }
  assert.ok(error instanceof expected, `${error} is no ${expected.name}`);
  assert.ok(error.body.message.length > 10, error.message);
  assert.ok(error.traceId, "the error names no request");
}

const { accountId, identityId: nobody } = await freestyle.whoami();
assert.ok(accountId);
assert.equal(nobody, null);

// VPCs and machines.
const { vpcId } = await freestyle.vpc.create({ cidr: "10.77.0.0/24" });
const nic = (ipv4) => ({ nics: [{ default: true, vpc: vpcId, mode: "routed", ipv4 }] });
const made = await freestyle.vms.create({
  ...nic("10.77.0.20"),
  name: "Research Agent #1",
  idleTimeoutSeconds: 300,
  persistence: { type: "persistent" },
  memSizeGb: 0.5,
  additionalFiles: { "/opt/run/hello": { content: "#!/bin/sh\necho hello\n", executable: true } },
});
const { vm, vmId } = made;
assert.deepEqual(made.domains, []);
const info = await vm.getInfo();
assert.deepEqual([info.id, info.name, info.state], [vmId, "Research Agent #1", "running"]);
const any = await freestyle.vms.create({ ...nic(true), spec: new VmSpec().memSizeGb(0.25) });
const listed = await freestyle.vms.list();
assert.equal(listed.totalCount, 2);
assert.equal(listed.runningCount, 2);
assert.equal(listed.vms.find(({ id }) => id === vmId).sizing.memSizeMib, 512);

// Commands.
assert.deepEqual(await vm.exec("/opt/run/hello; echo no >&2; exit 3"), { stdout: "hello\n", stderr: "no\n", statusCode: 3 });
assert.equal((await vm.exec("[[ -n $BASH_VERSION ]] && echo $((6 * 7))")).stdout, "42\n");
assert.equal((await vm.exec({ command: "-x", timeoutMs: 5000 })).statusCode, 127);
await refused(vm.exec({ command: "sleep 60", timeoutMs: 300 }), Errors.ExecTimedOutError);
const before = Date.now();
await vm.exec("nohup sleep 1000 >/dev/null 2>&1 &");
assert.ok(Date.now() - before < 5000, "a command in the background was waited for");
await vm.exec("useradd --create-home bob");
const bob = vm.user({ username: "bob" });
assert.equal((await bob.exec("id -un; pwd")).stdout, "bob\n/home/bob\n");
await refused(vm.user({ username: "nobody-here" }).exec("id"), Errors.UserNotFoundError);

// Files.
const bytes = Buffer.from(Array.from({ length: 3_000_001 }, (_, n) => n % 251));
await vm.fs.writeFile("/srv/deep/down/data", bytes);
assert.ok((await vm.fs.readFile("/srv/deep/down/data")).equals(bytes));
await vm.fs.writeTextFile("/srv/ünï code.txt", "grüße");
assert.equal(await vm.fs.readTextFile("/srv/ünï code.txt"), "grüße");
await vm.fs.writeTextFile("/srv/empty", "");
assert.equal(await vm.fs.readTextFile("/srv/empty"), "");
const entries = (await vm.fs.readDir("/srv")).map(({ name, kind }) => `${kind} ${name}`).sort();
assert.deepEqual(entries, ["directory deep", "file empty", "file ünï code.txt"]);
await vm.fs.mkdir("/srv/made/of/many", true);
assert.equal(await vm.fs.exists("/srv/made/of/many"), true);
assert.equal((await vm.fs.stat("/srv/deep/down/data")).size, bytes.length);
await vm.fs.remove("/srv/made", true);
assert.equal(await vm.fs.exists("/srv/made"), false);
await refused(vm.fs.readFile("/srv/nothing"), Errors.FileNotFoundError);
await refused(vm.fs.readFile("srv"), Errors.InvalidFilePathError);
await refused(vm.fs.readDir("/srv/empty"), /Path is not a directory/);

// Files as somebody else.
await bob.fs.writeFile("/home/bob/own/data", bytes);
assert.equal((await vm.fs.stat("/home/bob/own/data")).owner, "bob");
assert.ok((await bob.fs.readFile("/home/bob/own/data")).equals(bytes));
assert.deepEqual((await bob.fs.readDir("/home/bob/own")).map(({ name }) => name), ["data"]);
await refused(bob.fs.writeTextFile("/etc/shadow", "x"), Errors.AccessDeniedError);
await refused(bob.fs.readFile("/etc/shadow"), Errors.AccessDeniedError);
await refused(bob.fs.readFile("/home/bob/nothing"), Errors.FileNotFoundError);

// Lifecycle.
assert.equal((await vm.stop()).vmId, vmId);
assert.equal((await vm.getInfo()).state, "stopped");
assert.equal((await vm.waitForExit()).exitStatus, "stopped");
await refused(vm.exec("true"), Errors.VmNotRunningError);
assert.deepEqual((await vm.start({ idleTimeoutSeconds: 60 })).domains, []);
assert.notEqual((await vm.getInfo()).vmInstanceId, info.vmInstanceId);
assert.equal(await vm.fs.readTextFile("/srv/ünï code.txt"), "grüße");
await vm.optimize();
assert.equal((await any.vm.kill()).id, any.vmId);
assert.ok(Array.isArray((await vm.getLogs()).logs));

// A create whose answer was lost is sent again, and makes nothing new.
const twice = await freestyle.vms.create({ ...nic("10.77.0.30") });
const again = await freestyle.vms.create({ ...nic("10.77.0.30") });
assert.equal(again.vmId, twice.vmId);
await twice.vm.delete();

// Creates that are refused end, and are not repeated for ever.
await refused(freestyle.vms.create(nic("10.77.0.20")), Errors.ConflictError);
await refused(freestyle.vms.create(nic("10.78.0.1")), Errors.CreateVmBadRequestError);
await refused(freestyle.vms.create({ nics: [{ vpc: "none", mode: "routed", ipv4: true }] }), Errors.NotFoundError);
await refused(freestyle.vms.create({ snapshotId: "sc-00000000000000000000" }), Errors.SnapshotNotFoundError);
await refused(freestyle.vms.create({ domains: [{ domain: "a.example" }] }), Errors.InvalidDomainsError);
await refused(freestyle.vms.create({ memSizeGb: 8192 }), Errors.CustomSizingNotAllowedError);
await refused(freestyle.vms.create({ spec: new VmSpec().aptDeps("git") }), Errors.CreateVmBadRequestError);
const wrong = new Freestyle({ apiKey: "wk_wrong", baseUrl: process.env.FREESTYLE_API_URL });
await refused(wrong.vms.create(), Errors.UnauthorizedError);
await refused(freestyle.vpc.create({ cidr: "8.8.8.0/24" }), /Failed to create VPC: 400 .*INVALID_PARAMETERS/);

// What Warren does not have.
await refused(vm.suspend(), Errors.SuspendFailedVmResumedError);
await refused(vm.resize({ cpu: 2 }), Errors.ResizeFailedError);
await refused(vm.fork(), Errors.VpcForkUnsupportedError);
await refused(vm.snapshot(), Errors.SnapshotVmBadRequestError);
await refused(freestyle.vms.snapshots.delete({ snapshotId: "sc-1" }), /^SnapshotNotFoundError: SNAPSHOT_NOT_FOUND: /);
await refused(freestyle.vms.snapshots.ensure({ spec: new VmSpec().workdir("/") }), Errors.CreateSnapshotBadRequestError);
assert.deepEqual(await freestyle.vms.snapshots.list({ includeDeleted: true }), { snapshots: [] });
assert.deepEqual(await freestyle.domains.mappings.list(), { mappings: [] });
await refused(freestyle.domains.mappings.create({ domain: "a.example", vmId, vmPort: 80 }), Errors.ServiceUnavailableError);
await refused(freestyle.git.repos.list(), Errors.NotFoundError);
await refused(vm.systemd.list(), Errors.NotFoundError);

// Identities.
const { identity, identityId } = await freestyle.identities.create();
const permission = await identity.permissions.vms.grant({ vmId, allowedUsers: ["bob", "root"] });
assert.deepEqual([permission.vmId, permission.identityId, permission.allowedUsers], [vmId, identityId, ["bob", "root"]]);
await refused(identity.permissions.vms.grant({ vmId }), Errors.PermissionAlreadyExistsError);
assert.deepEqual(await identity.permissions.vms.get({ vmId }), permission);
assert.equal((await identity.permissions.vms.list({ limit: 5 })).total, 1);
const { token, tokenId } = await identity.tokens.create();
assert.deepEqual(await identity.tokens.list(), { tokens: [{ id: tokenId }] });
assert.ok((await freestyle.identities.list()).identities.some(({ id }) => id === identityId));

const client = new Freestyle({ accessToken: token, baseUrl: process.env.FREESTYLE_API_URL });
assert.equal((await client.whoami()).identityId, identityId);
const { vm: granted } = await client.vms.get({ vmId });
assert.equal((await granted.exec("id -un")).stdout, "root\n");
assert.equal((await granted.user({ username: "bob" }).exec("id -un")).stdout, "bob\n");
assert.equal(await granted.fs.readTextFile("/srv/ünï code.txt"), "grüße");
assert.equal((await granted.getInfo()).state, "running");
await granted.start();
await refused(granted.stop(), Errors.VmAccessDeniedError);
await refused(granted.delete(), Errors.VmAccessDeniedError);
await refused(granted.user({ username: "daemon" }).exec("id"), Errors.VmAccessDeniedError);
await refused(client.vms.create(), Errors.ForbiddenError);
await refused(client.vpc.create({}), /Failed to create VPC: 403/);
await refused(client.vms.ref({ vmId: any.vmId }).exec("id"), Errors.VmNotFoundError);
const updated = await identity.permissions.vms.update({ vmId, allowedUsers: ["bob"] });
assert.equal(updated.id, permission.id);
assert.equal((await granted.exec("id -un")).stdout, "bob\n");
await identity.tokens.revoke({ tokenId });
await refused(granted.exec("true"), Errors.UnauthorizedError);
await identity.permissions.vms.revoke({ vmId });
await refused(identity.permissions.vms.get({ vmId }), Errors.VmPermissionNotFoundError);
await freestyle.identities.delete({ identityId });
await refused(identity.tokens.create(), Errors.IdentityNotFoundError);

// The end.
assert.deepEqual(await vm.delete(), { id: vmId, recreate: false });
await freestyle.vms.delete({ vmId: any.vmId });
assert.equal((await freestyle.vms.list()).totalCount, 0);
await refused(vm.exec("true"), Errors.VmNotFoundError);
