//! What a guest misses that calls a stub of WASI. Tools for languages whose own library needs WASI put modules into the component whose functions
//! do nothing but trap (`--stub-wasi`), so that the component asks for nothing. Such a trap says nothing by itself.

use wasmtime::FrameInfo;

/// Begins the names of what tools export beside the functions of interfaces.
const OF_TOOLS: &str = "cm32p2_";

/// Parts of the names of WASI's functions, and what to do instead; the first that fits counts. How the names are written depends on the tool:
/// `now`, or `cm32p2|wasi:clocks/wall-clock@0.2|now`.
const INSTEAD: [(&[&str], &str); 8] = [
    (
        &["now", "resolution", "subscribe-duration", "subscribe-instant"],
        "there is no clock but the interface `clock`: use that, or the event's `time`",
    ),
    (&["random", "insecure-seed"], "there are no random numbers: use the event's `id`"),
    (&["descriptor", "director", "filesystem"], "there are no files: use the policy's settings or `state`"),
    (&["socket", "network", "resolve-address", "datagram"], "there is no network: publish an event for a sink"),
    (&["stream", "stdin", "stdout", "stderr", "terminal"], "there is no console: use the interface `log`"),
    (&["environment", "arguments", "initial-cwd"], "there is no environment: use the policy's settings"),
    (&["poll"], "a policy can't wait"),
    (&["exit", "error"], "a policy can't end its process: raise an exception, or refuse"),
];

/// Returns what to do instead, if a guest stopped in a stub. `frame`: the innermost one.
pub fn instead(frame: &FrameInfo) -> Option<&'static str> {
    let module = frame.module();
    let imported = module.imports().filter(|import| import.ty().func().is_some()).count();
    let exports: Vec<&str> = module.exports().filter(|export| export.ty().func().is_some()).map(|export| export.name()).collect();
    of_module(&exports, (frame.func_index() as usize).checked_sub(imported)?)
}

/// Returns the same for a function of a module. One of stubs has nothing else in it, and exports its functions in their order.
fn of_module(exports: &[&str], called: usize) -> Option<&'static str> {
    let is_stubs = exports.iter().all(|name| name.starts_with(OF_TOOLS) || of(name).is_some());
    exports.get(called).filter(|_| is_stubs).and_then(|name| of(name))
}

fn of(function: &str) -> Option<&'static str> {
    let found = INSTEAD.iter().find(|(parts, _)| parts.iter().any(|part| function.contains(part)));
    found.map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_known_by_its_export_in_the_forms_of_both_tools() {
        let of_python = ["subscribe-duration", "subscribe-instant", "now", "resolution"];
        assert!(of_module(&of_python, 2).is_some_and(|said| said.contains("`clock`")));
        let of_javascript = [
            "cm32p2|wasi:io/error@0.2|error_dtor",
            "cm32p2|wasi:io/streams@0.2|[method]output-stream.write",
            "cm32p2|wasi:io/streams@0.2|[method]output-stream.write_post",
            "cm32p2|wasi:filesystem/types@0.2|[method]descriptor.read-via-stream",
            "cm32p2|wasi:random/insecure-seed@0.2|insecure-seed",
            "cm32p2_realloc",
            "cm32p2_initialize",
        ];
        let said = [1, 3, 4].map(|called| of_module(&of_javascript, called).unwrap());
        assert!(said[0].contains("`log`") && said[1].contains("files") && said[2].contains("random"), "{said:?}");
        assert_eq!((of_module(&of_javascript, 5), of_module(&of_javascript, 7)), (None, None));
    }

    #[test]
    fn a_policys_own_module_is_no_stub() {
        let own = ["cabi_realloc", "signalpost:policy/plugin@0.1.0#describe", "signalpost:policy/routing@0.1.0#route", "now"];
        assert!((0..4).all(|called| of_module(&own, called).is_none()));
    }
}
