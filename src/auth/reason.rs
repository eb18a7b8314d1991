//! Why a request or a token was refused: for the log and a counter, never for the client.

/// A reason, which is a label of `signalpost_auth_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No API key was shown, or several were.
    NoKey,
    UnknownKey,
    /// The API key lacks the scope.
    Scope,
    Origin,
    /// Not three parts, or a part that is not what RFC 7515 and RFC 7519 say.
    Malformed,
    /// An algorithm that is not configured.
    Algorithm,
    /// `crit`: an extension that must be understood. This server understands none.
    Critical,
    /// A `typ` that is not configured.
    TokenType,
    /// No key has the token's `kid` and algorithm.
    NoSuchKey,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    /// A claim that must be there is missing.
    MissingClaim,
    /// The token is for another user.
    OtherUser,
    /// No token was shown where it can't come in a first frame.
    NoToken,
    /// The first frame did not come in time.
    FirstFrameLate,
    /// The first frame was not a token.
    FirstFrame,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::NoKey => "no_key",
            Reason::UnknownKey => "unknown_key",
            Reason::Scope => "scope",
            Reason::Origin => "origin",
            Reason::Malformed => "malformed",
            Reason::Algorithm => "algorithm",
            Reason::Critical => "critical",
            Reason::TokenType => "token_type",
            Reason::NoSuchKey => "no_such_key",
            Reason::Signature => "signature",
            Reason::Expired => "expired",
            Reason::NotYetValid => "not_yet_valid",
            Reason::Issuer => "issuer",
            Reason::Audience => "audience",
            Reason::MissingClaim => "missing_claim",
            Reason::OtherUser => "other_user",
            Reason::NoToken => "no_token",
            Reason::FirstFrameLate => "first_frame_late",
            Reason::FirstFrame => "first_frame",
        }
    }
}
