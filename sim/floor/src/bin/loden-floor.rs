//! The floor: one piece of kernel work, then the end.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use loden_floor::attach::{self, Attachment};
use loden_floor::{Error, nft, report, reserve, vxlan};

const USAGE: &str = "loden-floor: the bare kernel work of Loden's operations, to measure them against.

Usage: loden-floor attach NETNS BRIDGE PORT LINK ADDRESS/PREFIX GATEWAY
       loden-floor detach NETNS LINK
       loden-floor peers COUNT
       loden-floor nft-add | nft-delete | nft-rules-add | nft-rules-delete
       loden-floor reserve DIRECTORY ADDRESS | release DIRECTORY ADDRESS
       loden-floor nothing

Works in the network namespace it is started in and checks nothing: use one made for it. Prints how many objects it made or removed and
in how many microseconds, without the start of the process.";

fn main() -> ExitCode {
    let begun = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let told = match run(&words) {
        Ok(objects) => std::io::stdout().write_all(report(objects, begun.elapsed()).as_bytes()),
        Err(error) => {
            let _nowhere_to_tell = writeln!(std::io::stderr(), "loden-floor: {error}");
            return ExitCode::FAILURE;
        }
    };
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(words: &[&str]) -> Result<usize, Error> {
    let usage = || Error::Usage(USAGE.to_owned());
    match words {
        ["attach", netns, bridge, port, link, address, gateway] => {
            let owned = |text: &str| text.to_owned();
            Attachment {
                netns: owned(netns),
                bridge: owned(bridge),
                port: owned(port),
                link: owned(link),
                address: address.parse().map_err(|_| usage())?,
                gateway: gateway.parse().map_err(|_| usage())?,
            }
            .add()?;
            Ok(4)
        }
        ["detach", netns, link] => attach::delete(netns, link).map(|()| 1),
        ["peers", count] => vxlan::program(count.parse().map_err(|_| usage())?),
        ["nft-add"] => nft::add(),
        ["nft-delete"] => nft::delete(),
        ["nft-rules-add"] => nft::add_rules(),
        ["nft-rules-delete"] => nft::delete_rules(),
        ["reserve", directory, address] => reserve::reserve(directory, address).map(|()| 1),
        ["release", directory, address] => reserve::release(directory, address).map(|()| 1),
        ["nothing"] => Ok(0),
        _ => Err(usage()),
    }
}
