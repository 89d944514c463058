//! Sandboxes that have to end after something went wrong: namespaces removed, the runtime killed, the machine restarted.

use std::time::Duration;

use crate::containerd::{Containerd, log_text, remove_namespace};
use crate::machine::{Machine, PATIENCE, Plugins, alone, names_in, wait_until};
use crate::network::{self, Backend, Limits, Network};
use crate::pods::{config, done, end, pair, reach, tcp};

#[test]
fn a_sandbox_ends_whatever_happened_to_it() {
    alone(Plugins::Ours, |machine| {
        Network::configure(machine, Backend::Nftables, Limits::Runtime);
        let mut containerd = Containerd::set_up();
        let runtime = containerd.runtime();
        let (web, other) = pair(&runtime, 0);
        end(&runtime, web);
        end(&runtime, other);
        let before = machine.at_rest();

        let (web, other) = pair(&runtime, 1);
        remove_namespace(&web.namespace_name);
        remove_namespace(&other.namespace_name);
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after network namespaces were removed");

        let (web, other) = pair(&runtime, 2);
        containerd = containerd.killed_and_started();
        reach(machine, &web, &other);
        containerd = containerd.killed_and_started();
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after containerd was killed");

        let (web, other) = pair(&runtime, 3);
        runtime.stop_pod_sandbox(&web.id).unwrap();
        runtime.stop_pod_sandbox(&web.id).unwrap();
        containerd = containerd.killed_and_started();
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after sandboxes were stopped again and again");

        let (web, other) = pair(&runtime, 4);
        let _containerd = containerd.rebooted();
        // The kubelet ends what it finds.
        end(&runtime, web);
        end(&runtime, other);
        let (web, other) = pair(&runtime, 5);
        reach(machine, &web, &other);
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after a reboot");
    });
}

#[test]
fn sandboxes_end_after_the_runtime_was_killed_over_them() {
    alone(Plugins::Ours, |machine| {
        Network::configure(machine, Backend::Nftables, Limits::Runtime);
        let mut containerd = Containerd::set_up();
        let runtime = containerd.runtime();
        let (web, other) = pair(&runtime, 0);
        end(&runtime, web);
        end(&runtime, other);
        let before = machine.at_rest();

        let (web, other) = pair(&runtime, 1);
        // A namespace is made, then an address is reserved, then the chain is through.
        let signs = ["/run/netns", "/var/lib/cni/networks/cbr0", "/var/lib/cni/results"];
        for n in 0..9 {
            let sign = || names_in(signs[n % signs.len()]).count();
            let was = sign();
            let starting = std::thread::spawn({
                let port = i32::try_from(n).unwrap();
                let config = config(&format!("doomed{n}"), vec![tcp(81 + port, 8081 + port)]);
                let runtime = runtime.clone();
                move || runtime.run_pod_sandbox(config)
            });
            assert!(wait_until(PATIENCE, || sign() != was), "{}", log_text());
            containerd = containerd.killed_and_started();
            let _ = starting.join().unwrap();
            // What was called goes on without its caller.
            assert!(wait_until(PATIENCE, || !network::plugin_runs()), "a plugin does not end");
            // The kubelet ends what the runtime knows of.
            for id in done(runtime.list_pod_sandbox()) {
                if id != web.id && id != other.id {
                    done(runtime.stop_pod_sandbox(&id));
                    done(runtime.remove_pod_sandbox(&id));
                }
            }
        }
        // A namespace that was made and not noted is the runtime's to lose.
        for name in names_in("/run/netns").filter(|name| name.starts_with("cni-")) {
            if name != web.namespace_name && name != other.namespace_name {
                remove_namespace(&name);
            }
        }
        reach(machine, &web, &other);
        for n in 0..4 {
            let stopping = std::thread::spawn({
                let (runtime, id) =
                    (runtime.clone(), if n % 2 == 0 { web.id.clone() } else { other.id.clone() });
                move || runtime.stop_pod_sandbox(&id)
            });
            // The moment is the point here, not a condition: how far the stopping has come.
            std::thread::sleep(Duration::from_millis(30 * n));
            containerd = containerd.killed_and_started();
            let _ = stopping.join().unwrap();
        }
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after containerd was killed in the middle");
    });
}

#[test]
fn what_a_runtime_forgot_is_collected_with_iptables() {
    alone(Plugins::Ours, |machine| forget(machine, Backend::Iptables));
}

#[test]
fn what_a_runtime_forgot_is_collected_with_nftables() {
    alone(Plugins::Ours, |machine| forget(machine, Backend::Nftables));
}

fn forget(machine: &Machine, backend: Backend) {
    // What the firewall plugin lets through is an address, and no container's.
    let network = Network::configure(machine, backend, Limits::Runtime).without("firewall");
    let containerd = Containerd::set_up();
    let runtime = containerd.runtime();
    let (web, other) = pair(&runtime, 0);
    end(&runtime, web);
    end(&runtime, other);
    let before = machine.at_rest();

    let _ = pair(&runtime, 1);
    let _containerd = containerd.lost();
    assert_eq!(done(runtime.list_pod_sandbox()), Vec::<String>::new());
    // New containers are there before anybody collects; they publish the same ports.
    let (web, other) = pair(&runtime, 2);
    network.collect_garbage(&[&web.id, &other.id]);
    reach(machine, &web, &other);
    end(&runtime, web);
    end(&runtime, other);
    machine.assert_holds(&before, "after the runtime forgot its containers");
}
