#![no_main]

use std::process::{ExitCode, exit};
use std::sync::LazyLock;

use signalpost::config::Config;
use signalpost::internals::fuzzing::Guest;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// The roles whose answers are tried.
const WORLD: &str = "package fuzz:guest; world guest {
    include signalpost:policy/routing-policy@0.1.0;
    include signalpost:policy/formatting-policy@0.1.0;
    include signalpost:policy/sessions-policy@0.1.0;
}";

static GUEST: LazyLock<Guest> = LazyLock::new(|| {
    let mut resolve = wit_component::metadata::Bindgen::default().resolve;
    resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../wit")).unwrap();
    let package = resolve.push_source("guest.wit", WORLD).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    let mut module = wat::parse_str(include_str!("../guest.wat")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let component = ComponentEncoder::default().module(&module).unwrap().encode().unwrap();
    let (config, _) = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap();
    Guest::new(&component, &config).unwrap()
});

libfuzzer_sys::fuzz_target!(
    init: {
        // Plugins are compiled by a child of the same binary: this one, where libFuzzer has the main function.
        if std::env::args().nth(1).is_some_and(|argument| argument == "compile-component") {
            exit(i32::from(signalpost::cli::main() != ExitCode::SUCCESS));
        }
        LazyLock::force(&GUEST);
    },
    |input: &[u8]| GUEST.answer(input)
);
