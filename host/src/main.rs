//! nearwire
fn main() {
    let path = std::env::args().nth(3).expect("config");
    let text = std::fs::read_to_string(path).expect("read");
    let config: nearwire::config::Config = toml::from_str(&text).expect("config");
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    if let Err(e) = nearwire::run::run(&config) {
        eprintln!("error: {e}");
        std::process::exit(if e.is_refused_identity() { 3 } else { 1 })
    }
}
