import { useChat } from "@ai-sdk/react";
import type { UIMessage } from "ai";
import { useMemo, useState } from "react";
import { cancel, chatOptions } from "./transport.js";

type Part = UIMessage["parts"][number];
type Answer = (answer: { id: string; approved: boolean }) => unknown;

export function Chat({ url, agent }: { url: string; agent: string }) {
  const options = useMemo(() => chatOptions({ url, agent }), [url, agent]);
  const { messages, sendMessage, addToolApprovalResponse, status, error } = useChat({ ...options, resume: true });
  const [text, setText] = useState("");
  return (
    <main>
      {messages.map((message) => (
        <article key={message.id}>
          <strong>{message.role === "user" ? "You" : agent}</strong>
          {message.parts.map((part, index) => (
            <MessagePart key={index} part={part} answer={addToolApprovalResponse} />
          ))}
        </article>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (text) sendMessage({ text });
          setText("");
        }}
      >
        <input value={text} onChange={(event) => setText(event.target.value)} placeholder="Ask the agent" />
        <button>Send</button>
        {status !== "ready" && (
          <button type="button" onClick={() => cancel(url)}>
            Stop
          </button>
        )}
      </form>
    </main>
  );
}

function MessagePart({ part, answer }: { part: Part; answer: Answer }) {
  if (part.type === "text") return <p>{part.text}</p>;
  if (part.type === "reasoning") return <p><em>{part.text}</em></p>;
  if (part.type !== "dynamic-tool") return null;
  const { approval } = part;
  return (
    <section>
      {part.title ?? part.toolName}: {part.state}
      {part.state === "approval-requested" && approval && (
        <>
          <button onClick={() => answer({ id: approval.id, approved: true })}>Allow</button>
          <button onClick={() => answer({ id: approval.id, approved: false })}>Reject</button>
        </>
      )}
    </section>
  );
}
