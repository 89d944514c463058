//! Sandboxes that have to end after something went wrong: namespaces removed, the runtime killed, the machine restarted.

use crate::containerd::{Containerd, remove_namespace};
use crate::machine::{Plugins, alone};
use crate::network::{Backend, Limits, Network};
use crate::pods::{end, pair, reach};

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
