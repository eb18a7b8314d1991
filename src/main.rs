//! The `signalpost` command. See `signalpost::cli`.

fn main() -> std::process::ExitCode {
    signalpost::cli::main()
}
