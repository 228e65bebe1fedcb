// A chat of the AI SDK: reads commands as lines of JSON, and writes an answer to each.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [modules] = process.argv.slice(2);
const ai = await import(pathToFileURL(`${modules}/ai/dist/index.mjs`).href);

let chats = 0;
// The state that a user interface would show.
class State {
  status = "ready";
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, this.snapshot(message)));
  snapshot = (value) => structuredClone(value);
}

class Chat extends ai.AbstractChat {}

let cutAfter = Infinity;
// A connection that is lost after a number of bytes.
async function cutting(input, init) {
  const response = await fetch(input, init);
  let left = cutAfter;
  cutAfter = Infinity;
  if (left === Infinity || !response.body) return response;
  const reader = response.body.getReader();
  const body = new ReadableStream({
    async pull(controller) {
      const { value, done } = await reader.read();
      if (done) return controller.close();
      left -= value.length;
      if (left > 0) return controller.enqueue(value);
      await reader.cancel();
      controller.error(new TypeError("network error"));
    },
  });
  return new Response(body, response);
}

let errors = [];
function open(options, messages = []) {
  return new Chat({
    id: `chat-${(chats += 1)}`,
    messages,
    state: new State(messages),
    transport: new ai.DefaultChatTransport({ api: options.api, body: options.body, fetch: cutting }),
    sendAutomaticallyWhen: ai.lastAssistantMessageIsCompleteWithApprovalResponses,
    onError: (error) => errors.push(error.message),
  });
}

let chat;
const settled = async () => {
  while (!["ready", "error"].includes(chat.status)) await new Promise((done) => setTimeout(done, 5));
};
// Reads a response as the transport does; errors of the turn are not errors here.
async function read(chunks) {
  const lines = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`);
  const body = new Blob([...lines, "data: [DONE]\n\n"]).stream();
  const stream = new ai.DefaultChatTransport().processResponseStream(body);
  let message;
  for await (message of ai.readUIMessageStream({ stream, onError: () => undefined }));
  return { message };
}

const commands = {
  read: ({ chunks }) => read(chunks),
  open: ({ options, messages }) => void (chat = open(options, messages)),
  send: ({ message }) => chat.sendMessage(message),
  cut: ({ bytes }) => void (cutAfter = bytes),
  resume: () => chat.resumeStream(),
  regenerate: () => chat.regenerate(),
  approve: async ({ id, approved }) => {
    await chat.addToolApprovalResponse({ id, approved });
    await new Promise((done) => setTimeout(done, 0));
    await settled();
  },
};
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...args } = JSON.parse(line);
  errors = [];
  const result = await commands[command](args);
  console.log(JSON.stringify(result ?? { status: chat.status, errors, messages: chat.messages }));
}
