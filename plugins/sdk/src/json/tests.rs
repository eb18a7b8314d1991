use super::*;

#[test]
fn a_whole_number_and_its_string_are_one_id() {
    let data = Fields::parse(r#"{"a": 1001, "b": "1001", "c": "alice", "d": -7, "e": 18446744073709551616}"#).unwrap();
    let ids: Vec<String> = ["a", "b", "c", "d", "e"].iter().map(|name| data.id(name).unwrap().into()).collect();
    assert_eq!(ids, ["1001", "1001", "alice", "-7", "18446744073709551616"]);
}

#[test]
fn a_field_that_is_not_an_id_is_refused_by_name() {
    for value in ["1.5", "1.0", "1e3", "-0", "null", "true", "\"\"", "[1]", "{}"] {
        let json = format!(r#"{{"driver_id": {value}}}"#);
        let refusal = Fields::parse(&json).unwrap().id("driver_id").unwrap_err();
        assert_eq!(refusal.code, "invalid_field", "{value}");
        assert!(refusal.detail.contains("`driver_id`"), "{}", refusal.detail);
        assert!(serde_json::from_str::<Id>(value).is_err());
    }
}

#[test]
fn a_field_in_a_list_is_named_with_its_place() {
    let data = Fields::parse(r#"{"shares": [{"rider_id": 1}, {}]}"#).unwrap();
    let shares = data.objects("shares").unwrap();
    let refusal = shares[1].id("rider_id").unwrap_err();
    assert_eq!(refusal.code, "missing_field");
    assert!(refusal.detail.contains("`shares[1].rider_id`"), "{}", refusal.detail);
}

#[test]
fn data_that_are_not_an_object_are_refused() {
    for json in ["[]", "1", "null", "\"text\""] {
        assert_eq!(Fields::parse(json).err().unwrap().code, "invalid_data");
    }
}

#[test]
fn an_object_with_too_many_members_is_refused() {
    let object = |members: usize| format!("{{{}}}", (0..members).map(|member| format!("\"{member}\":1")).collect::<Vec<_>>().join(","));
    assert_eq!(Fields::parse(&object(1000)).unwrap().iter().count(), 1000);
    let refusal = Fields::parse(&object(1001)).err().unwrap();
    assert_eq!(refusal, Refusal::new("invalid_data", "the event's data has more than 1000 members"));
    let doubled = format!("{{{}\"a\":1}}", "\"a\":0,".repeat(2000));
    assert_eq!(Fields::parse(&doubled).unwrap().iter().count(), 1, "a member that is replaced is not one more");
}

#[test]
fn what_has_too_many_names_and_values_is_not_read() {
    let ones = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    // The list itself is a value.
    assert!(!has_too_many_values(&ones(VALUES_MAX - 1)) && has_too_many_values(&ones(VALUES_MAX)));
    let members = |count: usize| format!("{{{}}}", (0..count).map(|name| format!("\"{name}\":1")).collect::<Vec<_>>().join(","));
    assert!(!has_too_many_values(&members(VALUES_MAX / 2 - 1)) && has_too_many_values(&members(VALUES_MAX / 2)));
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(!has_too_many_values(&deep(VALUES_MAX - 1)) && has_too_many_values(&deep(VALUES_MAX)));
    // What is written in a string is not counted, however it ends.
    for text in ["[,:{", "\\\"[,:{", "\\\\"] {
        let text = format!("[\"{}\",1]", text.repeat(VALUES_MAX));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok() && !has_too_many_values(&text));
    }
    for unfinished in ["\"", "\"\\", "[\"a"] {
        assert!(!has_too_many_values(&format!("{}{unfinished}", " ".repeat(VALUES_MAX))));
    }
    let refusal = Fields::parse(&format!("{{\"a\":{}}}", ones(VALUES_MAX))).err().unwrap();
    assert_eq!(refusal, Refusal::new("invalid_data", "the event's data has more than 10000 names and values"));
}

#[test]
fn a_list_that_is_too_long_is_refused_by_name_and_so_is_each_item() {
    let list = |items: usize, item: &str| format!(r#"{{"list":[{}]}}"#, vec![item; items].join(","));
    for (items, item, ids, objects) in [
        (1000, "7", Ok(1000), Err("`list` should be a list of at most 1000 objects")),
        (1001, "7", Err("`list` should be a list of at most 1000 ids"), Err("`list` should be a list of at most 1000 objects")),
        (1000, "{}", Err("`list[0]` should be"), Ok(1000)),
        (1001, "{}", Err("`list` should be a list of at most 1000 ids"), Err("`list` should be a list of at most 1000 objects")),
        (1, r#""7 ""#, Err("`list[0]` should be an id: "), Err("`list` should be a list of at most 1000 objects")),
    ] {
        let json = list(items, item);
        let data = Fields::parse(&json).unwrap();
        let both = [(data.ids("list").map(|list| list.len()), ids), (data.objects("list").map(|list| list.len()), objects)];
        for (found, expected) in both {
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(refusal), Err(words)) => {
                    assert_eq!(refusal.code, "invalid_field");
                    assert!(refusal.detail.starts_with(words), "{}", refusal.detail);
                }
                (found, expected) => panic!("{items} times {item}: {found:?} ≠ {expected:?}"),
            }
        }
    }
}

#[test]
fn the_largest_field_of_data_that_are_too_large_is_named() {
    let refusal = too_large(r#"{"pool_id":7,"text":"hello"}"#);
    let all = "the event's data has 28 bytes and should have at most 261120";
    assert_eq!(refusal, Refusal::new("invalid_field", format!("`text` has 7 bytes: {all}")));
    assert_eq!(too_large("[]").code, "invalid_data");
}

#[test]
fn of_a_name_that_occurs_twice_the_last_value_counts_in_the_first_place() {
    let data = Fields::parse(r#"{"a":1,"b":2,"\u0061":3}"#).unwrap();
    let members: Vec<_> = data.iter().map(|(name, value)| (name, value.get())).collect();
    assert_eq!(members, [("a", "3"), ("b", "2")]);
}

#[test]
fn a_large_object_keeps_its_order_and_each_name_once() {
    let members: Vec<String> = (0..50).map(|member| format!("\"{member}\":{member}")).collect();
    let doubled = format!("{{{},{}}}", members.join(","), members.join(",").replace(':', ":-"));
    let data = Fields::parse(&doubled).unwrap();
    let values: Vec<_> = data.iter().map(|(_, value)| value.get().to_owned()).collect();
    assert_eq!(values, (0..50).map(|member| format!("-{member}")).collect::<Vec<_>>());
    assert_eq!((data.get("3").unwrap().get(), data.get("49").unwrap().get(), data.get("50").is_none()), ("-3", "-49", true));
    let object = Object::default().rest(&data, &[]).rest(&data, &[]).into_json();
    assert_eq!(object, format!("{{{}}}", members.join(",").replace(':', ":-")));
}

#[test]
fn what_is_put_into_an_object_first_stays() {
    let data = Fields::parse(r#"{"type":"x","a\"":1.50,"b":2}"#).unwrap();
    let object = Object::new("y").value("b", &[1]).rest(&data, &[]).text("b", "z");
    assert_eq!(object.into_json(), r#"{"type":"y","b":[1],"a\"":1.50}"#);
    assert_eq!(Object::default().into_json(), "{}");
}
