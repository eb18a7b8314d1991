//! What `export!` expands to, and what stands behind it.

use std::cell::OnceCell;

use crate::Policy;
use crate::bindings::plugin::exports::signalpost::policy::plugin::Description;
use crate::misfit;

/// Makes a component of a policy: `export!(MyPolicy: routing, formatting);` exports the named roles, each of which the policy
/// has to implement (`Routing`, `Formatting`, `Sessions`). Name and version are those of the crate.
///
/// The rest comes with it: settings are read and refused in words that name the setting, and the message of a panic goes into
/// the server's fault report.
#[macro_export]
macro_rules! export {
    ($policy:ty: $($role:ident),+ $(,)?) => {
        const _: () = {
            ::std::thread_local! {
                // The host configures each instance before its first call, and an instance has one thread.
                static POLICY: ::std::cell::OnceCell<$policy> = const { ::std::cell::OnceCell::new() };
            }

            struct Exported;

            impl $crate::bindings::plugin::exports::signalpost::policy::plugin::Guest for Exported {
                fn describe() -> $crate::bindings::plugin::exports::signalpost::policy::plugin::Description {
                    $crate::export::describe::<$policy>(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
                }

                fn configure(settings: ::std::string::String) -> ::std::result::Result<(), ::std::string::String> {
                    POLICY.with(|policy| $crate::export::configure(policy, env!("CARGO_PKG_NAME"), &settings))
                }
            }

            $crate::bindings::plugin::export_plugin!(Exported with_types_in $crate::bindings::plugin);
            $($crate::__export_role!($role Exported $policy, POLICY);)+
        };

        #[cfg(all(test, not(target_arch = "wasm32")))]
        mod __signalpost_baseline {
            #[allow(unused_imports)] // The policy may be named by a path.
            use super::*;

            // Does nothing unless `signalpost plugin bench` runs it.
            #[test]
            fn run() {
                $crate::baseline::run::<$policy>(&[$($crate::__baseline_role!($role $policy)),+]);
            }
        }
    };
}

/// One role of `export!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_role {
    (routing $exported:ident $policy:ty, $instance:ident) => {
        impl $crate::bindings::routing::exports::signalpost::policy::routing::Guest for $exported {
            fn route(event: $crate::Event) -> ::std::result::Result<$crate::Decision, $crate::Refusal> {
                $instance.with(|policy| <$policy as $crate::Routing>::route($crate::export::configured(policy), &event))
            }
        }
        $crate::bindings::routing::export_routing!($exported with_types_in $crate::bindings::routing);
    };
    (formatting $exported:ident $policy:ty, $instance:ident) => {
        impl $crate::bindings::formatting::exports::signalpost::policy::formatting::Guest for $exported {
            fn vary() -> ::std::vec::Vec<::std::string::String> {
                <$policy as $crate::Formatting>::VARY.iter().map(|name| (*name).into()).collect()
            }

            fn format(
                message: $crate::Message,
                reader: $crate::Attributes,
            ) -> ::std::result::Result<::std::option::Option<$crate::Body>, $crate::Refusal> {
                let reader = $crate::Reader(reader);
                $instance.with(|policy| <$policy as $crate::Formatting>::format($crate::export::configured(policy), message, &reader))
            }
        }
        $crate::bindings::formatting::export_formatting!($exported with_types_in $crate::bindings::formatting);
    };
    (sessions $exported:ident $policy:ty, $instance:ident) => {
        impl $crate::bindings::sessions::exports::signalpost::policy::sessions::Guest for $exported {
            fn opened(session: $crate::Session) -> ::std::result::Result<$crate::Response, $crate::Refusal> {
                $instance.with(|policy| <$policy as $crate::Sessions>::opened($crate::export::configured(policy), &session))
            }

            fn received(
                session: $crate::Session,
                message: $crate::Body,
            ) -> ::std::result::Result<::std::option::Option<$crate::Response>, $crate::Refusal> {
                $instance.with(|policy| <$policy as $crate::Sessions>::received($crate::export::configured(policy), &session, message))
            }

            fn closed(session: $crate::Session, code: u16) -> ::std::result::Result<$crate::Response, $crate::Refusal> {
                $instance.with(|policy| <$policy as $crate::Sessions>::closed($crate::export::configured(policy), &session, code))
            }
        }
        $crate::bindings::sessions::export_sessions!($exported with_types_in $crate::bindings::sessions);
    };
    ($role:ident $exported:ident $policy:ty, $instance:ident) => {
        ::std::compile_error!(::std::concat!("`", ::std::stringify!($role), "` is no role: there are routing, formatting and sessions"));
    };
}

/// How one role is called without WebAssembly.
#[doc(hidden)]
#[macro_export]
macro_rules! __baseline_role {
    (routing $policy:ty) => {
        $crate::baseline::Role::Routing(<$policy as $crate::Routing>::route)
    };
    (formatting $policy:ty) => {
        $crate::baseline::Role::Formatting(<$policy as $crate::Formatting>::format)
    };
    (sessions $policy:ty) => {
        $crate::baseline::Role::Sessions(<$policy as $crate::Sessions>::received)
    };
}

#[doc(hidden)]
pub fn describe<P: Policy>(name: &str, version: &str) -> Description {
    report_panics();
    Description { name: name.to_owned(), version: version.to_owned(), events: P::EVENTS.iter().map(|name| (*name).to_owned()).collect() }
}

#[doc(hidden)]
pub fn configure<P: Policy>(policy: &OnceCell<P>, name: &str, settings: &str) -> Result<(), String> {
    report_panics();
    let configured = read(name, settings)?;
    policy.set(configured).map_err(|_| format!("`{name}` is configured already"))
}

/// The policy with these settings.
pub(crate) fn read<P: Policy>(name: &str, settings: &str) -> Result<P, String> {
    let policy: P = misfit::read(settings).map_err(|misfit| format!("the settings of `{name}`: {misfit}"))?;
    policy.check()?;
    Ok(policy)
}

#[doc(hidden)]
pub fn configured<P>(policy: &OnceCell<P>) -> &P {
    policy.get().expect("the host calls `configure` before any role")
}

/// A panic is reported by its message, not as a bare trap. Tests have their own reporter.
fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| {
        crate::bindings::host::signalpost::policy::diagnostics::panicked(&panic.to_string());
    }));
}
