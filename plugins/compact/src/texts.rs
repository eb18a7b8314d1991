//! What people read, in their language. English is what routing policies write, so it needs no entry.

use signalpost_plugin::{Fields, locale};

#[derive(Clone, Copy)]
pub enum Language {
    German,
    Hindi,
}

impl Language {
    /// The language of a tag such as `de-AT` (BCP 47). `None`: the text stays English.
    pub fn of(tag: &str) -> Option<Language> {
        locale::pick(&[("de", Language::German), ("hi", Language::Hindi)], tag).copied()
    }
}

/// One text that a routing policy writes into `details`.
struct Text {
    message_type: &'static str,
    english: &'static str,
    german: &'static str,
    hindi: &'static str,
}

const TEXTS: [Text; 1] = [Text {
    message_type: "pooling_match",
    english: "You have been matched for a pooling request!",
    german: "Für deine Anfrage wurde eine Mitfahrt gefunden!",
    hindi: "आपके राइड-शेयरिंग अनुरोध के लिए मैच मिल गया है!",
}];

/// The message's `details` in this language. A text that is not in the table was written by somebody for this
/// occasion, and says more than a translation of something else.
pub fn details(language: Language, message: &Fields) -> Option<&'static str> {
    let (message_type, english) = (message.text("type").ok()?, message.text("details").ok()?);
    let text = TEXTS.iter().find(|text| text.message_type == message_type && text.english == english)?;
    Some(match language {
        Language::German => text.german,
        Language::Hindi => text.hindi,
    })
}
