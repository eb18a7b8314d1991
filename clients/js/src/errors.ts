/** Why a message was not taken, or why reading ended. */
export class SignalpostError extends Error {
  /**
   * The server's code, or one of the client's own: `lost` (the connection ended before the server answered: it may have taken the message),
   * `stopped` (the client has stopped), `full` (too many messages wait), `too_large` (over the server's limit), `behind` (a loop over
   * `messages()` is too slow).
   */
  readonly code: string;
  readonly detail: string;

  constructor(code: string, detail: string) {
    super(`${code}: ${detail}`);
    this.name = "SignalpostError";
    this.code = code;
    this.detail = detail;
  }
}
