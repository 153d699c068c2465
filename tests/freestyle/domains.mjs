// Domains: mapped with a machine and after it, verified, refused and taken back.
import assert from "node:assert/strict";
import { Errors, freestyle } from "freestyle";

async function refused(call, expected) {
  const error = await call.then(
    (value) => assert.fail(`was done: ${JSON.stringify(value)}`),
    (error) => error,
  );
  assert.ok(error instanceof expected, `${error} is no ${expected.name}`);
  assert.ok(error.body.message.length > 10, error.message);
}

const { domains } = freestyle;
const { verifications, mappings } = domains;
const names = async (options) => (await mappings.list(options)).mappings.map((mapping) => mapping.domain);

const made = await freestyle.vms.create({ domains: [{ domain: "app.preview.example", vmPort: 3000 }] });
const { vmId } = made;
assert.deepEqual(made.domains, ["app.preview.example"]);
await refused(freestyle.vms.create({ domains: [{ domain: "app.preview.example" }] }), Errors.InvalidDomainsError);
await refused(mappings.create({ domain: "app.preview.example", vmId, vmPort: 1 }), Errors.DomainAlreadyExistsError);
await refused(mappings.create({ domain: "co.uk", vmId, vmPort: 1 }), Errors.InvalidDomainError);
await refused(mappings.create({ domain: "shop.example.com", vmId, vmPort: 1 }), Errors.DomainOwnershipNotVerifiedError);
await refused(domains.certificates.createWildcard({ domain: "example.com" }), Errors.FailedToProvisionCertificateError);

const mapping = await mappings.create({ domain: "shop.preview.example", vmId, vmPort: 3000 });
assert.deepEqual([mapping.domain, mapping.vmId, mapping.vmPort], ["shop.preview.example", vmId, 3000]);
assert.deepEqual(await names(), ["app.preview.example", "shop.preview.example"]);
assert.deepEqual(await names({ domain: "shop.preview.example" }), ["shop.preview.example"]);
assert.deepEqual(await names({ limit: 1, cursor: "1" }), ["shop.preview.example"]);
assert.deepEqual(await mappings.delete({ domain: "shop.preview.example" }), {});
await refused(mappings.delete({ domain: "shop.preview.example" }), Errors.NotFoundError);

const { verificationId, record } = await verifications.create({ domain: "example.com" });
assert.equal(record.name, "_freestyle_custom_hostname.example.com");
assert.match(record.value, /^warren-verification=[0-9a-f]{32}$/);
assert.deepEqual((await verifications.list()).map(({ domain }) => domain), ["example.com"]);
await refused(verifications.complete({ verificationId }), Errors.VerificationFailedError);
assert.deepEqual(await domains.list(), []);
const cancelled = await verifications.cancel({ domain: "example.com", verificationCode: record.value });
assert.deepEqual(cancelled, { domain: "example.com", verificationCode: record.value });
await refused(verifications.complete({ domain: "example.com" }), Errors.VerificationNotFoundError);
await refused(verifications.create({ domain: "b.preview.example" }), Errors.FailedToCreateVerificationCodeError);

await made.vm.delete();
assert.deepEqual(await names(), []);
