//! Builds the `debian` package into the directory given: `cargo run -p images --example build_debian -- DIR`.

use images::{BuildOptions, Progress, Store};

struct Lines;

impl Progress for Lines {
    fn step(&mut self, number: usize, total: usize, what: &str, seconds: u32) {
        println!("[{number}/{total}] {what} (about {seconds} s)");
    }
    fn detail(&mut self, text: &str) {
        println!("    {text}");
    }
    fn canceled(&self) -> bool {
        false
    }
}

fn main() -> Result<(), images::Error> {
    let root = std::env::args().nth(1).unwrap_or_else(|| "packages".to_owned());
    let path = images::build(&Store::new(root), &BuildOptions::default(), &mut Lines)?;
    println!("{}", path.display());
    Ok(())
}
