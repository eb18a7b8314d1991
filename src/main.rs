//! The `signalpost` command. See `signalpost::cli`.

/// A storm's memory comes back: its background threads give freed pages to the system within ten seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    signalpost::cli::main()
}
