// The JavaScript client: create, patch, list, errors, and an informer that hears of each change.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

// The client is installed apart from this script.
const require = createRequire(`${process.env.NODE_CLIENT_DIRECTORY}/`);
const k8s = require("@kubernetes/client-node");

const namespace = "javascript";
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

await core.createNamespace({ body: { metadata: { name: namespace } } });

// What happened, in order, and a way to wait for the next.
const seen = [];
let wake = () => {};
const note = (type) => (object) => {
  seen.push(`${type} ${object.metadata.name}`);
  wake();
};
async function hears(expected) {
  const deadline = Date.now() + 20_000;
  while (seen.length < expected.length && Date.now() < deadline) {
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, 500);
    });
  }
  assert.deepEqual(seen, expected);
}

await core.createNamespacedConfigMap({
  namespace,
  body: { metadata: { name: "first", labels: { seen: "yes" } }, data: { a: "1" } },
});
const path = `/api/v1/namespaces/${namespace}/configmaps`;
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: "seen=yes" });
const informer = k8s.makeInformer(config, path, list, "seen=yes");
informer.on("add", note("add"));
informer.on("update", note("update"));
informer.on("delete", note("delete"));
await informer.start();
await hears(["add first"]);

await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "second", labels: { seen: "yes" } } } });
await hears(["add first", "add second"]);
const patched = await core.patchNamespacedConfigMap(
  { name: "first", namespace, body: [{ op: "replace", path: "/data/a", value: "2" }] },
  k8s.setHeaderOptions("Content-Type", k8s.PatchStrategy.JsonPatch),
);
assert.deepEqual(patched.data, { a: "2" });
await hears(["add first", "add second", "update first"]);
await core.patchNamespacedConfigMap(
  { name: "second", namespace, body: { metadata: { labels: { seen: null } } } },
  k8s.setHeaderOptions("Content-Type", k8s.PatchStrategy.StrategicMergePatch),
);
await core.deleteNamespacedConfigMap({ name: "first", namespace });
await hears(["add first", "add second", "update first", "delete second", "delete first"]);
await informer.stop();

const made = await apps.createNamespacedDeployment({
  namespace,
  body: {
    metadata: { name: "web" },
    spec: {
      replicas: 2,
      selector: { matchLabels: { app: "web" } },
      template: {
        metadata: { labels: { app: "web" } },
        spec: { containers: [{ name: "web", image: "registry.test/web:1", ports: [{ containerPort: 80 }] }] },
      },
    },
  },
});
assert.equal(made.spec.strategy.type, "RollingUpdate");
assert.ok(made.metadata.creationTimestamp instanceof Date);
const page = await apps.listNamespacedDeployment({ namespace, limit: 1 });
assert.deepEqual(page.items.map((item) => item.metadata.name), ["web"]);

await assert.rejects(core.readNamespacedConfigMap({ name: "absent", namespace }), (error) => {
  assert.equal(error.code, 404);
  assert.equal(JSON.parse(error.body).reason, "NotFound");
  return true;
});
await assert.rejects(core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "Not_Valid" } } }), (error) => {
  assert.equal(error.code, 422);
  assert.equal(JSON.parse(error.body).details.causes[0].field, "metadata.name");
  return true;
});
console.log("informer: done");
process.exit(0);
