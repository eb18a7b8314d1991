//! The `signalpost` command. See `signalpost::cli`.

/// Returns the memory of a storm of connections: its background threads give freed pages back to the system within ten seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    signalpost::cli::main()
}
