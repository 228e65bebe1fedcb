// The page's session: its name is kept, so that the page finds it again when it is loaded again.
const name = (localStorage.session ??= crypto.randomUUID());
const log = document.querySelector("#log");
let socket;
let last = 0; // the index of the last event that was shown
let text; // the message that the agent is writing
const requests = new Map(); // the boxes of open permission requests, by their JSON-RPC ids

function show(kind, content) {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = content;
  log.append(element);
  element.scrollIntoView();
  return element;
}

const send = (frame) => socket.send(JSON.stringify(frame));

function ask(id, toolCall) {
  const box = show("permission", `Allow: ${toolCall.title ?? toolCall.toolCallId}? `);
  for (const [reply, label] of [["once", "Allow"], ["reject", "Reject"]]) {
    const button = document.createElement("button");
    button.textContent = label;
    button.onclick = () => send({ type: "permission", id, reply });
    box.append(button);
  }
  return box;
}

function showEvent(event) {
  last = Math.max(last, event.eventIndex);
  const { id, method, params } = event.payload;
  // A request is answered with the id of its event.
  if (method === "session/request_permission") return requests.set(id, ask(event.id, params.toolCall));
  if (event.sender === "client" && method === undefined) {
    // An answer to a request of the agent, from this page or another one.
    return requests.get(id)?.remove();
  }
  if (method === "session/prompt") {
    text = undefined;
    return show("user", params.prompt.map((block) => block.text ?? "").join(""));
  }
  const update = params?.update;
  if (update?.sessionUpdate === "agent_message_chunk") {
    text ??= show("agent", "");
    text.textContent += update.content.text ?? "";
  } else if (update?.sessionUpdate === "tool_call") {
    text = undefined;
    show("tool", update.title);
  }
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/sessions/${name}?after=${last}`);
  socket.onmessage = ({ data }) => {
    const frame = JSON.parse(data);
    if (frame.type === "event") showEvent(frame.event);
    if (frame.type === "error") show("error", frame.message);
  };
  socket.onclose = () => setTimeout(connect, 1000);
}

document.querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const input = event.target.prompt;
  if (input.value) send({ type: "prompt", prompt: input.value });
  input.value = "";
};
document.querySelector("#cancel").onclick = () => send({ type: "cancel" });
connect();
