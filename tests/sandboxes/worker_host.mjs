// Runs the Worker of docs/sandboxes/cloudflare.md with Node.js: node worker_host.mjs FOLDER
// The folder has worker.js, and cloudflare.js in the place of "cloudflare:workers". A container is a set of
// processes in the folder "home". Prints its port.
import { spawn } from "node:child_process";
import { mkdirSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { Readable } from "node:stream";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const { default: worker, AgentSandbox } = await import(pathToFileURL(`${folder}/worker.js`));
const environment = { HOME: `${folder}/home`, PATH: `${folder}/programs:/usr/bin:/bin` };

class Container {
  running = false;
  refused = 2; // it takes a moment until it runs commands
  start() {
    mkdirSync(environment.HOME);
    this.running = true;
  }
  async setInactivityTimeout() {}
  async destroy() {
    this.running = false;
    const stop = `kill -9 $(cat ${environment.HOME}/.sandbox-agent/server.pid)`;
    await new Promise((resolve) => spawn("sh", ["-c", stop], { stdio: "ignore" }).on("close", resolve));
    rmSync(environment.HOME, { recursive: true, force: true });
  }
  async exec(command, { stdin } = {}) {
    if (this.refused-- > 0) throw new Error("the container is starting");
    const child = spawn(command[0], command.slice(1), { env: environment, cwd: environment.HOME });
    if (stdin) Readable.fromWeb(stdin).pipe(child.stdin);
    else child.stdin.end();
    const parts = { stdout: [], stderr: [] };
    for (const name of ["stdout", "stderr"]) child[name].on("data", (part) => parts[name].push(part));
    const exitCode = new Promise((resolve) => child.on("close", resolve));
    return {
      output: async () => ({
        exitCode: await exitCode,
        stdout: Buffer.concat(parts.stdout),
        stderr: Buffer.concat(parts.stderr),
      }),
    };
  }
  getTcpPort(port) {
    return {
      fetch: (request) => {
        const url = new URL(request.url);
        url.host = `127.0.0.1:${port}`;
        return fetch(new Request(url, request));
      },
    };
  }
}

class Storage extends Map {
  put(name, value) {
    this.set(name, value);
  }
  deleteAll() {
    this.clear();
  }
}

const sandboxes = new Map();
const SANDBOX = {
  idFromName: (name) => name,
  get(id) {
    if (!sandboxes.has(id)) {
      const context = { container: new Container(), storage: new Storage() };
      sandboxes.set(id, new AgentSandbox(context, {}));
    }
    return sandboxes.get(id);
  },
};

const server = createServer(async (request, response) => {
  const has_body = !["GET", "HEAD"].includes(request.method);
  const sent = new Request(`http://worker${request.url}`, {
    method: request.method,
    headers: Object.entries(request.headers).filter(([name]) => !["connection", "host"].includes(name)),
    body: has_body ? Readable.toWeb(request) : null,
    duplex: "half",
  });
  const answer = await worker.fetch(sent, { API_KEY: process.env.API_KEY, SANDBOX });
  const headers = [...answer.headers].filter(([name]) => !["content-encoding", "content-length", "transfer-encoding", "connection"].includes(name));
  response.writeHead(answer.status, Object.fromEntries(headers));
  if (answer.body) Readable.fromWeb(answer.body).on("error", () => response.destroy()).pipe(response);
  else response.end();
});
process.stdin.on("end", () => process.exit()).resume();
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
