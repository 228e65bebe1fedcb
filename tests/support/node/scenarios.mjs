// What the tests of the published SDK do with a server, one scenario each, in the order of those tests. Prints
// what each came to as one line of JSON: null, or what went wrong.
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, baseUrl, token, folder] = process.argv.slice(2);
const { SandboxAgent, InMemorySessionPersistDriver } = await import(
  pathToFileURL(`${modules}/sandbox-agent/dist/index.js`).href
);
const { WebSocket } = globalThis; // Node 20 has it with --experimental-websocket

const text = (words) => [{ type: "text", text: words }];
const option = async (session, category) =>
  (await session.getConfigOptions()).find((one) => one.category === category)?.currentValue;

// Waits until a test holds: its value.
async function until(test) {
  const end = Date.now() + 15000;
  for (;;) {
    const value = await test();
    if (value) return value;
    if (Date.now() > end) throw new Error(`timeout: ${test}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

// Runs a scenario with a client, which is closed afterwards.
async function withClient(scenario, options = { baseUrl }) {
  const sdk = await SandboxAgent.connect({ token, ...options });
  try {
    return await scenario(sdk);
  } finally {
    await sdk.dispose();
  }
}

const withSession = (scenario) =>
  withClient(async (sdk) => scenario(await sdk.createSession({ agent: "mock" }), sdk));

// A fetch that passes requests on to the server and notes their paths; `answer` may answer itself.
function noting(paths, answer = () => undefined) {
  return async (input, init) => {
    const request = new Request(input, init);
    const { pathname, search } = new URL(request.url);
    paths.push(pathname);
    const own = answer(pathname, request);
    if (own !== undefined) return own;
    const { method, headers, signal } = request;
    const body = ["GET", "HEAD"].includes(method) ? {} : { body: request.body, duplex: "half" };
    return fetch(baseUrl + pathname + search, { method, headers, signal, ...body });
  };
}

// A tar archive of one file.
function archive(name, content) {
  const header = Buffer.alloc(512);
  const put = (value, offset) => header.write(value, offset, "latin1");
  const octal = (value, width) => value.toString(8).padStart(width, "0");
  put(name, 0);
  put(octal(0o644, 7), 100);
  put(octal(0, 7), 108);
  put(octal(0, 7), 116);
  put(octal(content.length, 11), 124);
  put(octal(0, 11), 136);
  put("        ", 148);
  put("0", 156);
  put("ustar\u000000", 257);
  put(`${octal(header.reduce((sum, byte) => sum + byte, 0), 6)}\u0000 `, 148);
  const padded = Buffer.alloc(Math.ceil(content.length / 512) * 512);
  padded.write(content);
  return Buffer.concat([header, padded, Buffer.alloc(1024)]);
}

const node = (source, members = {}) => ({ command: "node", args: ["-e", source], ...members });
const decoded = (entries) => Buffer.concat(entries.map((one) => Buffer.from(one.data, "base64"))).toString();
const ECHO = 'process.stdin.on("data", (data) => process.stdout.write("echo:" + data)); setInterval(() => {}, 1000);';

const scenarios = {
  "a session is created, prompted and stored": () =>
    withSession(async (session, sdk) => {
      const seen = [];
      const stop = session.onEvent((event) => seen.push(event));
      assert.equal((await session.prompt(text("hello"))).stopReason, "end_turn");
      await until(() => seen.some((event) => event.sender === "agent"));
      const ids = (await sdk.listSessions({ limit: 20 })).items.map((one) => one.id);
      assert.ok(ids.includes(session.id));
      assert.equal((await sdk.getSession(session.id)).agent, "mock");
      assert.ok((await sdk.listAcpServers()).servers.some((server) => server.agent === "mock"));
      const { items } = await sdk.getEvents({ sessionId: session.id, limit: 100 });
      assert.deepEqual(new Set(items.map((event) => event.sender)), new Set(["client", "agent"]));
      assert.ok(items.every((event) => typeof event.id === "string"));
      const indexes = items.map((event) => event.eventIndex);
      assert.ok(indexes.every(Number.isInteger));
      assert.deepEqual(indexes, indexes.toSorted((one, other) => one - other));
      stop();
    }),
  "agents are listed with their options, and files are managed": () =>
    withClient(async (sdk) => {
      const fresh = { config: true, noCache: true };
      assert.ok((await sdk.listAgents(fresh)).agents.some((agent) => agent.id === "mock"));
      const mock = await sdk.getAgent("mock", fresh);
      assert.equal(mock.id, "mock");
      assert.ok(Array.isArray(mock.configOptions));
      const root = join(folder, "files");
      const [nested, notes, moved, uploaded] = ["nested", "a.txt", "b.txt", "up"].map((name) => join(root, name));
      await sdk.mkdirFs({ path: nested });
      await sdk.writeFsFile({ path: notes }, "hello");
      const read = async (path) => new TextDecoder().decode(await sdk.readFsFile({ path }));
      assert.equal(await read(notes), "hello");
      const stat = await sdk.statFs({ path: notes });
      assert.deepEqual([stat.path, stat.size], [notes, 5]);
      const paths = (await sdk.listFsEntries({ path: root })).map((entry) => entry.path);
      assert.deepEqual(paths.toSorted(), [notes, nested]);
      assert.equal((await sdk.moveFs({ from: notes, to: moved, overwrite: true })).to, moved);
      const batch = await sdk.uploadFsBatch(archive("batch.txt", "in a batch"), { path: uploaded });
      assert.ok(batch.paths.some((path) => path.endsWith("batch.txt")));
      assert.equal(await read(join(uploaded, "batch.txt")), "in a batch");
      assert.equal((await sdk.deleteFsEntry({ path: moved })).path, moved);
    }),
  "everything goes through a fetch of the program's own": async () => {
    const paths = [];
    await withClient(async (sdk) => {
      await sdk.getHealth();
      const session = await sdk.createSession({ agent: "mock" });
      await sdk.destroySession(session.id);
    }, { fetch: noting(paths) });
    assert.ok(paths.includes("/v1/health"));
    assert.ok(paths.some((path) => path.startsWith("/v1/acp/")));
  },
  "an address or a fetch is needed": () =>
    assert.rejects(SandboxAgent.connect({ token }), /baseUrl is required unless fetch is provided/),
  "calls wait until the server is healthy": async () => {
    const paths = [];
    const health = () => paths.filter((path) => path === "/v1/health").length;
    const warming = (path) =>
      path === "/v1/health" && health() < 3 ? new Response("not yet", { status: 503 }) : undefined;
    const { agents } = await withClient((sdk) => sdk.listAgents(), { fetch: noting(paths, warming) });
    assert.ok(Array.isArray(agents));
    assert.deepEqual(paths.slice(0, 4), ["/v1/health", "/v1/health", "/v1/health", "/v1/agents"]);
  },
  "a server that does not become healthy is an error": () =>
    withClient((sdk) => assert.rejects(sdk.listAgents(), /Timed out waiting for sandbox-agent health/), {
      fetch: noting([], () => new Response("not yet", { status: 503 })),
      waitForHealth: { timeoutMs: 100 },
    }),
  "the wait for a healthy server is aborted": async () => {
    const abort = new AbortController();
    const hanging = (_, { signal }) =>
      new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason), { once: true }));
    await withClient(async (sdk) => {
      const agents = sdk.listAgents();
      abort.abort(new DOMException("the program gave up", "AbortError"));
      await assert.rejects(agents, /the program gave up/);
    }, { fetch: noting([], hanging), signal: abort.signal });
  },
  "a session of another client is restored with its history": async () => {
    const persist = new InMemorySessionPersistDriver({ maxEventsPerSession: 200 });
    const options = { baseUrl, persist, replayMaxEvents: 50, replayMaxChars: 20000 };
    const { id, lastConnectionId } = await withClient(async (sdk) => {
      const session = await sdk.createSession({ agent: "mock" });
      await session.prompt(text("first run"));
      return { id: session.id, lastConnectionId: session.lastConnectionId };
    }, options);
    await withClient(async (sdk) => {
      const session = await sdk.resumeSession(id);
      assert.notEqual(session.lastConnectionId, lastConnectionId);
      await session.prompt(text("second run"));
      const { items } = await sdk.getEvents({ sessionId: id, limit: 500 });
      const begins = items
        .filter(({ sender, payload }) => sender === "client" && payload.method === "session/prompt")
        .map(({ payload }) => payload.params.prompt[0].text);
      assert.ok(begins.some((words) => words.includes("Previous session history is replayed below")));
    }, options);
  },
  "the store in memory keeps as many events as it may": () =>
    withClient(async (sdk) => {
      const session = await sdk.createSession({ agent: "mock" });
      for (let turn = 0; turn < 20; turn += 1) await session.prompt(text(`turn ${turn}`));
      assert.ok((await sdk.getEvents({ sessionId: session.id, limit: 200 })).items.length <= 8);
    }, { baseUrl, persist: new InMemorySessionPersistDriver({ maxEventsPerSession: 8 }) }),
  "a session is destroyed, not cancelled by hand": () =>
    withSession(async (session, sdk) => {
      const refused = /Use destroySession\(sessionId\) instead/;
      await assert.rejects(session.send("session/cancel"), refused);
      await assert.rejects(sdk.sendSessionMethod(session.id, "session/cancel", {}), refused);
      assert.ok((await sdk.destroySession(session.id)).destroyedAt !== undefined);
      assert.ok((await sdk.getSession(session.id)).destroyedAt !== undefined);
    }),
  "a session begins with a model, and an unknown one is refused": () =>
    withClient(async (sdk) => {
      const session = await sdk.createSession({ agent: "mock", model: "mock" });
      assert.equal(await option(session, "model"), "mock");
      await assert.rejects(session.setModel("unknown-model"), /does not support value/);
    }),
  "the model is changed": () =>
    withSession(async (session) => {
      await session.setModel("mock-fast");
      assert.equal(await option(session, "model"), "mock-fast");
    }),
  "the mode is changed": () =>
    withSession(async (session) => {
      await session.setMode("plan");
      assert.equal((await session.getModes()).currentModeId, "plan");
    }),
  "the thought level is changed": () =>
    withSession(async (session) => {
      await session.setThoughtLevel("high");
      assert.equal(await option(session, "thought_level"), "high");
    }),
  "settings are changed again and again": () =>
    withSession(async (session) => {
      for (const model of ["mock-fast", "mock"]) {
        await session.setModel(model);
        assert.equal(await option(session, "model"), model);
      }
      for (const mode of ["plan", "normal"]) {
        await session.setMode(mode);
        assert.equal((await session.getModes()).currentModeId, mode);
      }
      for (const level of ["high", "medium", "low"]) {
        await session.setThoughtLevel(level);
        assert.equal(await option(session, "thought_level"), level);
      }
    }),
  "MCP servers and skills are configured": () =>
    withClient(async (sdk) => {
      const directory = join(folder, "config");
      await mkdir(directory, { recursive: true });
      const [mcp, skill] = [{ directory, mcpName: "one" }, { directory, skillName: "one" }];
      await sdk.setMcpConfig(mcp, { type: "local", command: "node", args: ["server.js"], env: { LEVEL: "1" } });
      assert.equal((await sdk.getMcpConfig(mcp)).type, "local");
      await sdk.deleteMcpConfig(mcp);
      await sdk.setSkillsConfig(skill, { sources: [{ type: "github", source: "a/b", skills: ["c"] }] });
      assert.equal((await sdk.getSkillsConfig(skill)).sources.length, 1);
      await sdk.deleteSkillsConfig(skill);
    }),
  "processes and terminals are used": () =>
    withClient(async (sdk) => {
      const config = await sdk.getProcessConfig();
      const maxOutputBytes = config.maxOutputBytes + 1;
      assert.equal((await sdk.setProcessConfig({ ...config, maxOutputBytes })).maxOutputBytes, maxOutputBytes);
      const run = await sdk.runProcess({ ...node('console.log("out"); console.error("err")'), timeoutMs: 10000 });
      assert.deepEqual([run.stdout, run.stderr], ["out\n", "err\n"]);

      const piped = await sdk.createProcess(node(`console.log("ready"); ${ECHO}`, { interactive: true }));
      assert.ok((await sdk.listProcesses()).processes.some((one) => one.id === piped.id));
      assert.equal((await sdk.getProcess(piped.id)).status, "running");
      await until(async () => decoded((await sdk.getProcessLogs(piped.id, { tail: 10 })).entries).includes("ready"));
      const entries = [];
      const log = await sdk.followProcessLogs(piped.id, (entry) => entries.push(entry), { tail: 1 });
      const data = Buffer.from("over stdin\n").toString("base64");
      assert.ok((await sdk.sendProcessInput(piped.id, { data, encoding: "base64" })).bytesWritten > 0);
      await until(() => decoded(entries).includes("echo:over stdin"));
      log.close();
      await log.closed;
      assert.equal((await sdk.stopProcess(piped.id, { waitMs: 5000 })).status, "exited");
      await sdk.deleteProcess(piped.id);

      const tty = await sdk.createProcess(node(ECHO, { interactive: true, tty: true }));
      const size = await sdk.resizeProcessTerminal(tty.id, { cols: 120, rows: 40 });
      assert.deepEqual([size.cols, size.rows], [120, 40]);
      assert.match(sdk.buildProcessTerminalWebSocketUrl(tty.id), /^wss?:/);
      const seen = { ready: 0, text: "", others: 0, closed: 0 };
      const terminal = sdk.connectProcessTerminal(tty.id, { WebSocket });
      terminal.onReady((frame) => (seen.ready += frame.processId === tty.id));
      terminal.onData((bytes) => (seen.text += Buffer.from(bytes)));
      terminal.onExit(() => (seen.others += 1));
      terminal.onError(() => (seen.others += 1));
      terminal.onClose(() => (seen.closed += 1));
      await until(() => seen.ready);
      terminal.sendInput("by hand\n");
      await until(() => seen.text.includes("echo:by hand"));
      terminal.close();
      await terminal.closed;
      assert.deepEqual([seen.ready, seen.others, seen.closed], [1, 0, 1]);
      assert.equal((await sdk.getProcess(tty.id)).status, "running");
      assert.equal((await sdk.killProcess(tty.id, { waitMs: 5000 })).status, "exited");
      await sdk.deleteProcess(tty.id);

      const quiet = await sdk.createProcess(node("setInterval(() => {}, 1000)"));
      assert.equal((await sdk.killProcess(quiet.id, { waitMs: 5000 })).status, "exited");
      await sdk.deleteProcess(quiet.id);
      await sdk.setProcessConfig(config);
    }),
  "a desktop is started": () =>
    withClient(async (sdk) => assert.equal((await sdk.startDesktop({ width: 800, height: 600 })).state, "active")),
};

const results = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    await scenario();
    results[name] = null;
  } catch (error) {
    results[name] = error.message;
  }
}
console.log(JSON.stringify(results));
