//! What wit-bindgen makes of the contract: one world of everything that can be imported, and one for each export.
//!
//! A component imports and exports what it uses, and no more. An import that the linker finds no call of is not in the core
//! module, and the component's encoder leaves it out. An export is there when `export!` names its role: with
//! `pub_export_macro` a world's exports are described where the macro is expanded, and not here.

#![allow(missing_docs)] // The contract describes its types, and what it left bare says what it is by its name.

/// What the host offers, and the words that the roles share.
pub mod host {
    wit_bindgen::generate!({
        inline: "
            package signalpost:plugin-sdk;

            world host {
                import signalpost:policy/types@0.1.0;
                import signalpost:policy/diagnostics@0.1.0;
                import signalpost:policy/log@0.1.0;
                import signalpost:policy/clock@0.1.0;
                import signalpost:policy/state@0.1.0;
                import signalpost:policy/presence@0.1.0;
                import signalpost:policy/groups@0.1.0;
                import signalpost:policy/metrics@0.1.0;
            }
        ",
        path: "../../wit",
        world: "signalpost:plugin-sdk/host",
        generate_all,
        generate_unused_types: true,
        additional_derives: [PartialEq],
    });
}

/// The description and the settings, which every policy exports.
pub mod plugin {
    wit_bindgen::generate!({
        inline: "package signalpost:plugin-sdk; world plugin { export signalpost:policy/plugin@0.1.0; }",
        path: "../../wit",
        world: "signalpost:plugin-sdk/plugin",
        pub_export_macro: true,
        export_macro_name: "export_plugin",
    });
}

/// The role of `Routing`.
pub mod routing {
    wit_bindgen::generate!({
        inline: "package signalpost:plugin-sdk; world routing { export signalpost:policy/routing@0.1.0; }",
        path: "../../wit",
        world: "signalpost:plugin-sdk/routing",
        with: { "signalpost:policy/types@0.1.0": super::host::signalpost::policy::types },
        pub_export_macro: true,
        export_macro_name: "export_routing",
    });
}

/// The role of `Formatting`.
pub mod formatting {
    wit_bindgen::generate!({
        inline: "package signalpost:plugin-sdk; world formatting { export signalpost:policy/formatting@0.1.0; }",
        path: "../../wit",
        world: "signalpost:plugin-sdk/formatting",
        with: { "signalpost:policy/types@0.1.0": super::host::signalpost::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_formatting",
    });
}

/// The role of `Sessions`.
pub mod sessions {
    wit_bindgen::generate!({
        inline: "package signalpost:plugin-sdk; world sessions { export signalpost:policy/sessions@0.1.0; }",
        path: "../../wit",
        world: "signalpost:plugin-sdk/sessions",
        with: { "signalpost:policy/types@0.1.0": super::host::signalpost::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_sessions",
    });
}
