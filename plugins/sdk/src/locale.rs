//! Texts in the reader's language.

/// The text for a language tag such as `de-AT` (BCP 47), by the lookup of RFC 4647: the tag itself, then without its last part,
/// and so on. Case doesn't matter, and `_` is as good as `-`. `None` where no part of the tag is known: take the default.
///
/// ```
/// use signalpost_plugin::locale;
///
/// let texts = [("de", "Hallo"), ("de-CH", "Grüezi")];
/// assert_eq!(locale::pick(&texts, "de-AT"), Some(&"Hallo"));
/// assert_eq!(locale::pick(&texts, "DE_ch"), Some(&"Grüezi"));
/// assert_eq!(locale::pick(&texts, "fr").unwrap_or(&"Hello"), &"Hello");
/// ```
pub fn pick<'a, T>(texts: &'a [(&str, T)], locale: &str) -> Option<&'a T> {
    let mut tag = locale;
    loop {
        if let Some((_, text)) = texts.iter().find(|(known, _)| same(known, tag)) {
            return Some(text);
        }
        tag = &tag[..tag.rfind(['-', '_'])?];
    }
}

fn same(one: &str, other: &str) -> bool {
    let letters = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.bytes().map(letters).eq(other.bytes().map(letters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_part_of_a_tag_wins() {
        let texts = [("de", 1), ("zh-Hant", 2), ("zh-Hant-HK", 3)];
        for (locale, text) in [
            ("de", Some(1)),
            ("de-AT-1996", Some(1)),
            ("zh_hant_tw", Some(2)),
            ("ZH-HANT-HK", Some(3)),
            ("zh", None),
            ("den", None),
            ("d", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(pick(&texts, locale).copied(), text, "{locale}");
        }
    }
}
