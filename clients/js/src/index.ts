export { Signalpost } from "./client.js";
export { SignalpostError } from "./errors.js";
export type { Events, Gap, Message, Options, State, TokenReason } from "./types.js";
