import { createRoot } from "react-dom/client";
import { Chat } from "./Chat";
import { sessionUrl } from "./transport.js";

// The session's name is kept, so that the page finds it again when it is loaded again.
const name = (localStorage.session ??= crypto.randomUUID());
const server = import.meta.env.VITE_SERVER ?? "http://127.0.0.1:2468";
const agent = import.meta.env.VITE_AGENT ?? "mock";
createRoot(document.getElementById("root")!).render(<Chat agent={agent} url={sessionUrl(server, name)} />);
