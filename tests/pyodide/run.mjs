// pytest in Pyodide: node run.mjs PACKAGES CHECKOUT ARGUMENTS...
// PACKAGES: a folder with pytest, what the tests need, and what chest needs, all of pure Python.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(process.cwd() + "/").resolve("pyodide/pyodide.mjs");
const { loadPyodide } = await import(pathToFileURL(found));
const [packages, checkout, ...given] = process.argv.slice(2);
const pyodide = await loadPyodide({ env: { HYPOTHESIS_PROFILE: "quick", HOME: "/home" } });
for (const [place, root] of [["/packages", packages], ["/checkout", checkout]]) {
    pyodide.FS.mkdirTree(place);
    pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root }, place);
}
const late = new Promise((resolve) => setTimeout(() => resolve("it took more than 30 seconds"), 30000));
const numpy = pyodide.loadPackage("numpy", { messageCallback() {}, errorCallback() {} });
await Promise.race([numpy.catch(() => {}), late]);
globalThis.given = given;
const status = pyodide.runPython(`
import os, sys
from js import given
sys.dont_write_bytecode = True
sys.path[:0] = ["/checkout", "/packages", "/checkout/tests/pyodide"]
os.chdir("/checkout")
import browser
browser.main(given.to_py())
`);
process.exit(status);
