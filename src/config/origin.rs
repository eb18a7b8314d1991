//! What an origin is, as a setting.

/// Whether a setting is an origin as browsers write it: scheme, host and a port that is not the scheme's own.
pub fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || b"+-.".contains(&byte));
    let is_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
    let has_default_port = (scheme == "https" && authority.ends_with(":443")) || (scheme == "http" && authority.ends_with(":80"));
    is_scheme && !authority.is_empty() && authority.bytes().all(is_host) && !has_default_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_origins_as_browsers_write_them() {
        for good in ["https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "*",
            "null",
            "app.example.com",
            "https://app.example.com/",
            "https://App.example.com",
            "https://a:443",
            "http://a:80",
            "https://*.a",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
