//! scratch
use std::process::ExitCode;
struct H;
impl ostler_cli::Host for H {
    fn serve(&self, a: ostler_cli::ServeArgs) -> ExitCode {
        println!("{a:?}");
        ExitCode::SUCCESS
    }
    fn store(&self, a: ostler_cli::StoreArgs) -> ExitCode {
        println!("{a:?}");
        ExitCode::SUCCESS
    }
}
fn main() -> ExitCode {
    ostler_cli::run(std::env::args_os(), &H)
}
