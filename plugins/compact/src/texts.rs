//! What people read, in their language. English is what routing policies write, so it needs no entry.

use indexmap::IndexMap;
use serde_json::value::RawValue;

#[derive(Clone, Copy)]
pub enum Language {
    German,
    Hindi,
}

impl Language {
    /// The language of a tag such as `de-AT` (BCP 47), whatever its region and its case. `None`: the text stays English.
    pub fn of(locale: &str) -> Option<Language> {
        let language = locale.split(['-', '_']).next()?;
        match language.to_ascii_lowercase().as_str() {
            "de" => Some(Language::German),
            "hi" => Some(Language::Hindi),
            _ => None,
        }
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
pub fn details(language: Language, members: &IndexMap<String, &RawValue>) -> Option<&'static str> {
    let text_of = |name: &str| serde_json::from_str::<String>(members.get(name)?.get()).ok();
    let (message_type, english) = (text_of("type")?, text_of("details")?);
    let text = TEXTS.iter().find(|text| text.message_type == message_type && text.english == english)?;
    Some(match language {
        Language::German => text.german,
        Language::Hindi => text.hindi,
    })
}
