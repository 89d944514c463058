//! nf_tables rules as values that print as `nft` lines, and the rule sets flannel installs.
