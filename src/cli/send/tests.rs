use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn arguments(words: &[&str]) -> Arguments {
    Line::parse_from(["send"].iter().chain(words)).arguments
}

#[test]
fn an_event_is_published_in_the_short_form_with_its_numbers_untouched() {
    let (path, body) = arguments(&["a.b", " {\"n\": 1.10, \"m\": 123456789012345678901234567890} ", "--id", "7"]).request().unwrap();
    assert_eq!(path, "/events");
    assert_eq!(body, r#"{"type":"a.b","id":"7","data":{"n": 1.10, "m": 123456789012345678901234567890}}"#);
}

#[test]
fn a_message_goes_to_one_user_whose_id_is_percent_encoded() {
    let (path, body) = arguments(&["--user", "a/b ü", r#""hi""#]).request().unwrap();
    assert_eq!((path.as_str(), body.as_str()), ("/users/a%2Fb%20%C3%BC/messages", r#""hi""#));
    assert_eq!(arguments(&["--user", "1", "-5"]).request().unwrap().1, "-5");
}

#[test]
fn data_comes_from_a_file_too() {
    let file = std::env::temp_dir().join(format!("signalpost-{}.json", uuid::Uuid::new_v4()));
    std::fs::write(&file, "{\"a\": 1}\n").unwrap();
    let (_, body) = arguments(&["t", "--file", file.to_str().unwrap()]).request().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(body, r#"{"type":"t","data":{"a": 1}}"#);
}

#[test]
fn missing_or_surplus_words_are_wrong_usage() {
    for words in [&["t"][..], &[], &["--user", "1", "t", "{}"], &["t", "{}", "--file", "f"]] {
        let error = arguments(words).request().unwrap_err();
        assert_eq!(error.downcast::<clap::Error>().unwrap().exit_code(), 2, "{words:?}");
    }
}

#[test]
fn data_that_is_not_json_is_explained() {
    let error = arguments(&["t", "hello"]).request().unwrap_err();
    assert!(format!("{error:#}").starts_with("the data isn't JSON (a text needs its quotes, as in '\"hello\"'): expected value"));
}
