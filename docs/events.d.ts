// The universal events of sandbox-agent-py, as GET /v1/sessions/{id}/events and its stream send them.
// Written by scripts/event_types.py from the schemas of the OpenAPI document (docs/openapi.json).

/** One event of a session; `type` selects the schema of the event and of its data. */
export type UniversalEvent = 
  | SessionStartedEvent
  | SessionEndedEvent
  | TurnStartedEvent
  | TurnEndedEvent
  | ItemStartedEvent
  | ItemDeltaEvent
  | ItemCompletedEvent
  | ErrorEvent
  | PermissionRequestedEvent
  | PermissionResolvedEvent
  | QuestionRequestedEvent
  | QuestionResolvedEvent
  | AgentUnparsedEvent;

/** An event of type `session.started`. */
export interface SessionStartedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "session.started";
  data: SessionStartedData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

export type EventSource = "agent" | "daemon";

/** The session was created; `metadata` has its settings. */
export interface SessionStartedData {
  metadata?: unknown;
}

/** An event of type `session.ended`. */
export interface SessionEndedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "session.ended";
  data: SessionEndedData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** The session has ended. */
export interface SessionEndedData {
  reason: "completed" | "error" | "terminated";
  terminated_by: "agent" | "daemon";
  message?: string | null;
  exit_code?: number | null;
  stderr?: StderrOutput | null;
}

/** The output of the agent's process to stderr. */
export interface StderrOutput {
  truncated: boolean;
  head?: string | null;
  tail?: string | null;
  total_lines?: number | null;
}

/** An event of type `turn.started`. */
export interface TurnStartedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "turn.started";
  data: TurnEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** A turn starts or ends; at the end, `metadata` has its stop_reason, usage and error. */
export interface TurnEventData {
  phase: "ended" | "started";
  turn_id?: string | null;
  metadata?: unknown;
}

/** An event of type `turn.ended`. */
export interface TurnEndedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "turn.ended";
  data: TurnEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** An event of type `item.started`. */
export interface ItemStartedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "item.started";
  data: ItemEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** An item starts or is completed. */
export interface ItemEventData {
  item: UniversalItem;
}

/** An item of a session: a message, a tool call, its result, or a status. */
export interface UniversalItem {
  /** Unique in its session. */
  item_id: string;
  /** The kind of the item. */
  kind: "message" | "status" | "system" | "tool_call" | "tool_result" | "unknown";
  /** Its parts; complete when the item is completed. */
  content: Array<
  | TextPart
  | JsonPart
  | ToolCallPart
  | ToolResultPart
  | FileRefPart
  | ReasoningPart
  | ImagePart
  | StatusPart>;
  /** In_progress, completed or failed. */
  status: "completed" | "failed" | "in_progress";
  /** The author. */
  role?: "assistant" | "system" | "tool" | "user" | null;
  /** The agent's own id (ACP's messageId or toolCallId). */
  native_item_id?: string | null;
  /** The item to which it belongs: the call of a result, or the caller of a sub-agent. */
  parent_id?: string | null;
}

/** Text, usually Markdown. */
export interface TextPart {
  type: "text";
  text: string;
}

/** Any JSON value that no other part represents. */
export interface JsonPart {
  type: "json";
  json: unknown;
}

/** A tool call; `arguments` is JSON in a string. */
export interface ToolCallPart {
  type: "tool_call";
  name: string;
  arguments: string;
  call_id: string;
}

/** The output of a tool call, as text. */
export interface ToolResultPart {
  type: "tool_result";
  call_id: string;
  output: string;
}

/** A file that was read, written or patched; `diff` is a unified diff. */
export interface FileRefPart {
  type: "file_ref";
  path: string;
  action: "patch" | "read" | "write";
  diff?: string | null;
}

/** The reasoning of the agent. */
export interface ReasoningPart {
  type: "reasoning";
  text: string;
  visibility?: "private" | "public";
}

/** An image; `path` is a path, a URI, or a `data:` URI with its content. */
export interface ImagePart {
  type: "image";
  path: string;
  mime?: string | null;
}

/** A status: the name and the new value of what changed. */
export interface StatusPart {
  type: "status";
  label: string;
  detail?: string | null;
}

/** An event of type `item.delta`. */
export interface ItemDeltaEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "item.delta";
  data: ItemDeltaData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** More of an item's text. */
export interface ItemDeltaData {
  item_id: string;
  delta: string;
  native_item_id?: string | null;
}

/** An event of type `item.completed`. */
export interface ItemCompletedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "item.completed";
  data: ItemEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** An event of type `error`. */
export interface ErrorEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "error";
  data: ErrorData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** Something failed; `code` is a JSON-RPC code or a name of the HTTP contract. */
export interface ErrorData {
  message: string;
  code?: string | null;
  details?: unknown;
}

/** An event of type `permission.requested`. */
export interface PermissionRequestedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "permission.requested";
  data: PermissionEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** A permission is requested, granted or rejected. */
export interface PermissionEventData {
  /** Unique in its session. */
  permission_id: string;
  /** A description of what the agent wants to do. */
  action: string;
  /** Requested, or the answer. */
  status: "accept" | "accept_for_session" | "reject" | "requested";
  /**
   * Of a request: request_id (ACP's), tool_call_id, item_id, kind, options, raw_input, paths; of an
   * answer: outcome, option_id, answered_by.
   */
  metadata?: unknown;
}

/** An event of type `permission.resolved`. */
export interface PermissionResolvedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "permission.resolved";
  data: PermissionEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** An event of type `question.requested`. */
export interface QuestionRequestedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "question.requested";
  data: QuestionEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** A question of the agent to the user, or its answer. */
export interface QuestionEventData {
  question_id: string;
  prompt: string;
  options: Array<string>;
  status: "answered" | "rejected" | "requested";
  response?: string | null;
}

/** An event of type `question.resolved`. */
export interface QuestionResolvedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "question.resolved";
  data: QuestionEventData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** An event of type `agent.unparsed`. */
export interface AgentUnparsedEvent {
  event_id: string;
  sequence: number;
  time: string;
  session_id: string;
  native_session_id?: string | null;
  source: EventSource;
  synthetic: boolean;
  type: "agent.unparsed";
  data: AgentUnparsedData;
  /** The agent's envelope, if the request asks for it. */
  raw?: unknown;
}

/** A message of the agent that cannot be understood; `raw_hash` is the SHA-256 of the event's raw. */
export interface AgentUnparsedData {
  error: string;
  location: string;
  raw_hash?: string | null;
}

/** A part of an item. */
export type ContentPart = UniversalItem["content"][number];

/** The name of the TypeScript SDK 0.1. */
export type AgentEvent = UniversalEvent;
