//! Leases and their codecs: `net-conf.json`, `subnet.env`, node annotations, backend data, etcd subnet keys, the
//! note on a bridge and flanneld's note about what it waits for.
//!
//! Everything here is text in, value out (and back). Formats are flannel's, byte for byte, because peers, runtimes and
//! operators' scripts read them. Getting a key wrong strands a node: its peers cannot find it, or its pods get no address.

mod annotations;
mod assigned;
mod attributes;
mod gateway_mark;
mod net_conf;
mod subnet_env;
mod subnet_key;
mod waiting;

pub use annotations::{AnnotationKeys, PrefixError};
pub use assigned::{AssignmentError, assigned_subnets};
pub use attributes::{AttributesError, BackendData, LeaseAttributes, PublicIp};
pub use gateway_mark::{gateway_mark, parse_gateway_mark};
pub use net_conf::{BackendConf, NetConf, NetConfError, SubnetRange};
pub use subnet_env::{PreviousSubnets, SubnetEnv, SubnetEnvError, gateway_of};
pub use subnet_key::{SubnetKey, SubnetKeyError};
pub use waiting::{read_waiting, render_waiting, waiting_file};
