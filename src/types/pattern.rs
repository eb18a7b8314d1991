//! Patterns of names: of event types, and of their sources.

/// Returns whether a pattern matches: `a.b` matches itself, `a.*` every name that begins with `a.`, and `*` all names.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Returns whether any of these patterns matches.
pub fn any_matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}
