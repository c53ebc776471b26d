//! The package that is part of this program: the manifests of `meta/`.

use crate::resolver::Embedded;

/// The root of the tree on Linux.
pub const ROOT_URL: &str = "fuchsia-pkg://fuchsia.com/guest#meta/root.cm";

/// The programs of the package: what `bin/` holds.
pub const BINARIES: &[&str] = &[
    "guest_manager",
    "virtio_balloon",
    "virtio_block",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "virtio_vsock",
    "vmm",
];

macro_rules! embedded {
    ($($name:literal = $file:literal,)*) => {
        &[$(Embedded { name: $name, text: include_str!(concat!("../../../../meta/", $file)) },)*]
    };
}

/// Every manifest and shard.
pub const MANIFESTS: &[Embedded] = embedded! {
    "meta/root.cml" = "linux/root.cml",
    "meta/debian_guest_manager.cml" = "debian_guest_manager.cml",
    "meta/termina_guest_manager.cml" = "termina_guest_manager.cml",
    "meta/zircon_guest_manager.cml" = "zircon_guest_manager.cml",
    "meta/guest_manager.shard.cml" = "guest_manager.shard.cml",
    "meta/guest_pkg.shard.cml" = "linux/guest_pkg.shard.cml",
    "meta/vmm.cml" = "vmm.cml",
    "meta/virtio_balloon.cml" = "virtio_balloon.cml",
    "meta/virtio_block.cml" = "virtio_block.cml",
    "meta/virtio_console.cml" = "virtio_console.cml",
    "meta/virtio_net.cml" = "virtio_net.cml",
    "meta/virtio_rng.cml" = "virtio_rng.cml",
    "meta/virtio_vsock.cml" = "virtio_vsock.cml",
    "syslog/client.shard.cml" = "linux/include/syslog/client.shard.cml",
    "src/connectivity/network/lib/net_interfaces/client.shard.cml" =
        "linux/include/src/connectivity/network/lib/net_interfaces/client.shard.cml",
    "src/sys/test_runners/tmp_storage.shard.cml" = "linux/include/src/sys/test_runners/tmp_storage.shard.cml",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cml::{self, NoIncludes};
    use crate::decl::{Availability, CapabilityType, Startup};
    use crate::model::{InstanceId, RouteError, RouteSource, Tree};
    use crate::resolver::{PackageResolver, Resolver};
    use std::rc::Rc;

    const BUILTIN: &[&str] = &[
        "fuchsia.kernel.HypervisorResource",
        "fuchsia.kernel.VmexResource",
        "fuchsia.logger.LogSink",
        "fuchsia.memorypressure.Provider",
        "fuchsia.net.interfaces.State",
        "host_tmp",
        "host_data",
    ];

    fn check_uses(tree: &mut Tree, id: InstanceId) {
        let moniker = tree.moniker(id);
        let resolved = tree.resolve(id).unwrap();
        for used in &resolved.decl.uses {
            let route = match used.kind {
                CapabilityType::Storage => tree.route_storage(id, used).map(|route| route.backing),
                _ => tree.route_use(id, used),
            };
            match route {
                Ok(route) => {
                    if let RouteSource::Builtin { name } = &route.source {
                        assert!(
                            BUILTIN.contains(&name.as_str()),
                            "{moniker}: {name} is not built in"
                        );
                    }
                }
                Err(RouteError::Void { .. }) => assert_eq!(
                    used.availability,
                    Availability::Optional,
                    "{moniker}: {}",
                    used.source_name
                ),
                Err(error) => panic!("{moniker}: {}: {error}", used.source_name),
            }
        }
    }

    #[test]
    fn every_use_in_the_linux_tree_leads_somewhere() {
        let packages = tempfile::tempdir().unwrap();
        for kind in ["debian", "termina", "zircon"] {
            std::fs::create_dir_all(packages.path().join(format!("{kind}_guest/data"))).unwrap();
        }
        let resolver = PackageResolver::new(
            "/proc/self/exe".into(),
            MANIFESTS.to_vec(),
            vec![packages.path().to_owned()],
        );
        let mut tree = Tree::new(ROOT_URL.parse().unwrap(), Rc::new(resolver));
        for kind in ["debian", "termina", "zircon"] {
            let manager = tree.find(&format!("{kind}-guest-manager").parse().unwrap()).unwrap();
            check_uses(&mut tree, manager);
            let vmm = tree.find(&format!("{kind}-guest-manager/vmm").parse().unwrap()).unwrap();
            check_uses(&mut tree, vmm);
            let runner = tree.route_runner(vmm, &"vmm".parse().unwrap()).unwrap();
            assert!(matches!(runner.source, RouteSource::Outgoing { id, .. } if id == manager));
            for device in ["balloon", "block", "console", "net", "rng", "vsock"] {
                let collection = format!("virtio_{device}_devices").parse().unwrap();
                let (name, url) = (
                    format!("virtio_{device}").parse().unwrap(),
                    format!("#meta/virtio_{device}.cm").parse().unwrap(),
                );
                let child = tree
                    .create_child(vmm, &collection, name, url, Startup::Lazy, Vec::new())
                    .unwrap();
                check_uses(&mut tree, child);
                let runner = tree.route_runner(child, &"elf".parse().unwrap()).unwrap();
                assert!(matches!(runner.source, RouteSource::Builtin { .. }));
            }
        }
        let root = tree.root();
        for expose in tree.resolve(root).unwrap().decl.exposes.clone() {
            tree.route_expose(root, expose.kind, &expose.target_name).unwrap();
        }
    }

    #[test]
    fn the_core_shards_are_valid() {
        let shards = [
            include_str!("../../../../meta/core/debian_guest_manager.core_shard.cml"),
            include_str!("../../../../meta/core/termina_guest_manager.core_shard.cml"),
            include_str!("../../../../meta/core/zircon_guest_manager.core_shard.cml"),
        ];
        for text in shards {
            let decl = cml::compile("core_shard.cml", text, &NoIncludes).unwrap();
            assert_eq!(decl.children.len(), 1);
        }
    }

    #[test]
    fn a_url_of_any_package_finds_the_manifests() {
        let resolver =
            PackageResolver::new("/proc/self/exe".into(), MANIFESTS.to_vec(), Vec::new());
        let url = "fuchsia-pkg://fuchsia.com/debian_guest_manager#meta/vmm.cm".parse().unwrap();
        assert_eq!(resolver.resolve(&url).unwrap().decl.collections.len(), 11);
    }
}
