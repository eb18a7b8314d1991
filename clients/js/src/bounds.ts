// All bounds of the client, each with its reason. The delays are those of clients/close-codes.json, which a test compares.

/** The longest delay before a client reconnects "now", so that many clients don't come back at the same moment. */
export const NOW_MAX_MS = 100;
export const FIRST_MS = 250;
export const LAST_MS = 10_000;
/** Chance can't make a hot loop. Waits are even above it: cut off at it, a part of all clients would come at once. */
export const FLOOR_MS = 50;
/** A connection that was open for this long was a good one: its end is a new failure. */
export const GOOD_AFTER_MS = 5000;

/** From the token's arrival to the hello. */
export const CONNECT_DEADLINE_MS = 10_000;
/** A page that wakes shows its user soon whether it is connected. */
export const WAKE_DEADLINE_MS = 5000;
/** The network returns for many at once. */
export const WAKE_MAX_MS = 1000;
/** The shortest silence before a ping, wait for its answer, and wait for another token, whatever the server says. */
export const OFTEN_MS = 1000;
/** After that, the session of a POST without an answer is taken for gone. */
export const POST_DEADLINE_MS = 10_000;
/** A longer timer would fire at once. */
export const TIMER_MAX_MS = 2_147_483_647;

/** Messages that come before the answer to a resume: as many as the server keeps for a user. */
export const EARLY_MAX = 1000;
/** Messages that wait for a loop: the same. */
export const BEHIND_MAX = 1000;
/** Messages of `send()` that are not settled: a quarter of what the server allows at once. */
export const SENDS_MAX = 256;
/** Acks are gathered: the server only needs them to begin a session without a resume. */
export const ACK_AFTER_MS = 1000;
export const ACK_AFTER_MESSAGES = 64;

/** After that, another call for a token may begin, and what the first one brings is thrown away. */
export const CALL_DEADLINE_MS = 30_000;
/** A token that no server has accepted yet is good for this long, as far as anyone knows. */
export const UNKNOWN_MS = 60_000;
/** How long before its end another token is asked for: a tenth of its life, within these, and not for all clients at once. */
export const MARGIN_MIN_MS = 5000;
export const MARGIN_MAX_MS = 60_000;

/** RFC 6455's code for a connection that ended without a close frame. */
export const LOST = 1006;
/** The session's token has expired. */
export const EXPIRED = 4001;
/** The first frame had no valid token. */
export const UNAUTHORIZED = 4205;
