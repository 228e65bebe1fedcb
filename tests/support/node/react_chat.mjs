// The transport of examples/react-chat with a chat of the AI SDK: a message, a permission, a resumed turn.
import * as ai from "ai";
import { cancel, chatOptions, sessionUrl } from "./transport.js";

const url = sessionUrl(process.argv[2], "a name/with a slash");
class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, structuredClone(message)));
  snapshot = (value) => structuredClone(value);
}
class Chat extends ai.AbstractChat {}

const chat = new Chat({ id: "page", state: new State(), ...chatOptions({ url, agent: "mock" }) });
const settled = async () => {
  while (!["ready", "error"].includes(chat.status)) await new Promise((done) => setTimeout(done, 5));
};
await chat.sendMessage({ text: "permission" });
const [asked] = chat.messages[1].parts.filter((part) => part.state === "approval-requested");
await chat.addToolApprovalResponse({ id: asked.approval.id, approved: true });
await new Promise((done) => setTimeout(done, 0));
await settled();
const answered = chat.messages[1].parts.find((part) => part.type === "dynamic-tool").state;
let over = false;
const sent = chat.sendMessage({ text: "stall" }).finally(() => (over = true));
let status = 0;
// The message may not have arrived yet.
while (!over) {
  status = (await cancel(url)).status;
  await new Promise((done) => setTimeout(done, 20));
}
await sent;
console.log(JSON.stringify({ answered, status, messages: chat.messages.length, error: chat.error?.message }));
