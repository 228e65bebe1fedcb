// How the page talks to the server: everything but the user interface.
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";

/** @type {(server: string, name: string) => string} */
export const sessionUrl = (server, name) => `${server}/v1/sessions/${encodeURIComponent(name)}`;

/**
 * The options of `useChat` for a session of the server, which the first message creates.
 * @param {{ url: string, agent: string }} session
 */
export const chatOptions = ({ url, agent }) => ({
  transport: new DefaultChatTransport({
    api: `${url}/ui`,
    body: { session: { agent, permissionMode: /** @type {const} */ ("ask") } },
  }),
  // An answer to a permission request continues the turn at once.
  sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
});

/** Stop the agent: `stop()` of the AI SDK only closes the connection. @param {string} url */
export const cancel = (url) => fetch(`${url}/cancel`, { method: "POST" });
