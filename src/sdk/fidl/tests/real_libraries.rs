//! Properties over values of the libraries that components speak: decoding undoes encoding, and a message with any one byte
//! changed to anything is rejected, or is a value that has one encoding.

use fidl::encoding::{Decoder, Encoder, WireType};
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_net as fnet;
use fidl_fuchsia_virtualization as fvirtualization;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn encode<T: WireType<Owned = T>>(value: T) -> Vec<u8> {
    Encoder::encode_all::<T>(value).unwrap().0
}

/// Whether the change made something of the value unknown, which is dropped or cannot be encoded.
fn check_change<T: WireType<Owned = T>>(wire: &[u8]) {
    let Ok(decoded) = Decoder::decode_all::<T>(wire, &mut []) else { return };
    match Encoder::encode_all::<T>(decoded) {
        Err(error) => assert_eq!(error, fidl::Error::UnknownUnionTag),
        Ok((again, _)) if again == wire => {}
        Ok((again, _)) => {
            // Members of tables that this library does not know are dropped; what is left is canonical.
            let reduced = Decoder::decode_all::<T>(&again, &mut []).unwrap();
            assert_eq!(encode(reduced), again);
        }
    }
}

fn check<T: WireType<Owned = T>>(value: T) {
    let mut wire = encode(value);
    let decoded = Decoder::decode_all::<T>(&wire, &mut []).unwrap();
    assert_eq!(encode(decoded), wire);
    for at in 0..wire.len() {
        let right = wire[at];
        for wrong in (0..=255).filter(|wrong| *wrong != right) {
            wire[at] = wrong;
            check_change::<T>(&wire);
        }
        wire[at] = right;
    }
}

fn mac_address() -> impl Strategy<Value = fnet::MacAddress> {
    any::<[u8; 6]>().prop_map(|octets| fnet::MacAddress { octets })
}

fn net_spec() -> impl Strategy<Value = fvirtualization::NetSpec> {
    (mac_address(), any::<bool>()).prop_map(|(mac_address, enable_bridge)| {
        fvirtualization::NetSpec { mac_address, enable_bridge }
    })
}

fn guest_info() -> impl Strategy<Value = fvirtualization::GuestInfo> {
    let descriptor = (
        option::of(any::<u8>()),
        option::of(any::<u64>()),
        option::of(any::<bool>()),
        option::of(vec(net_spec(), 0..3)),
    )
        .prop_map(|(num_cpus, guest_memory, vsock, networks)| {
            fvirtualization::GuestDescriptor {
                num_cpus,
                guest_memory,
                vsock,
                networks,
                ..Default::default()
            }
        });
    (
        option::of(Just(fvirtualization::GuestStatus::Running)),
        option::of(any::<i64>()),
        option::of(descriptor),
        option::of(Just(fvirtualization::GuestError::BadConfig)),
        option::of(vec("[a-zé]{0,9}", 0..3)),
    )
        .prop_map(|(guest_status, uptime, guest_descriptor, stop_error, detected_problems)| {
            fvirtualization::GuestInfo {
                guest_status,
                uptime,
                guest_descriptor,
                stop_error,
                detected_problems,
                ..Default::default()
            }
        })
}

fn guest_config() -> impl Strategy<Value = fvirtualization::GuestConfig> {
    (
        option::of(Just(fvirtualization::KernelType::Linux)),
        option::of("[a-z =]{0,20}"),
        option::of(vec("[a-z]{0,9}", 0..3)),
        option::of(any::<u8>()),
        option::of(any::<u64>()),
        option::of(any::<bool>()),
    )
        .prop_map(|(kernel_type, cmdline, cmdline_add, cpus, guest_memory, virtio_rng)| {
            fvirtualization::GuestConfig {
                kernel_type,
                cmdline,
                cmdline_add,
                cpus,
                guest_memory,
                virtio_rng,
                ..Default::default()
            }
        })
}

fn attributes() -> impl Strategy<Value = fio::NodeAttributes2> {
    (
        option::of(any::<u64>()),
        option::of(any::<u32>()),
        option::of(any::<bool>()),
        option::of(any::<u64>()),
        option::of(any::<u64>().prop_map(fio::NodeProtocolKinds::from_bits_retain)),
    )
        .prop_map(|(creation_time, mode, casefold, content_size, protocols)| {
            fio::NodeAttributes2 {
                mutable_attributes: fio::MutableNodeAttributes {
                    creation_time,
                    mode,
                    casefold,
                    ..Default::default()
                },
                immutable_attributes: fio::ImmutableNodeAttributes {
                    content_size,
                    protocols,
                    ..Default::default()
                },
            }
        })
}

fn dictionary() -> impl Strategy<Value = fdata::Dictionary> {
    let leaf = prop_oneof![
        "[a-z/]{0,12}".prop_map(fdata::DictionaryValue::Str),
        vec("[a-z]{0,6}", 0..3).prop_map(fdata::DictionaryValue::StrVec),
    ];
    let value = leaf.prop_recursive(2, 8, 2, |inner| {
        vec(inner, 0..3).prop_map(|values| {
            fdata::DictionaryValue::ObjVec(values.into_iter().map(|v| of([Some(v)])).collect())
        })
    });
    vec(option::of(value), 0..3).prop_map(of)
}

fn of(values: impl IntoIterator<Item = Option<fdata::DictionaryValue>>) -> fdata::Dictionary {
    let entry = |(index, value): (usize, Option<fdata::DictionaryValue>)| fdata::DictionaryEntry {
        key: format!("key{index}"),
        value: value.map(Box::new),
    };
    let entries = values.into_iter().enumerate().map(entry).collect();
    fdata::Dictionary { entries: Some(entries), ..Default::default() }
}

fn subnet() -> impl Strategy<Value = fnet::Subnet> {
    let addr = prop_oneof![
        any::<[u8; 4]>().prop_map(|addr| fnet::IpAddress::Ipv4(fnet::Ipv4Address { addr })),
        any::<[u8; 16]>().prop_map(|addr| fnet::IpAddress::Ipv6(fnet::Ipv6Address { addr })),
    ];
    (addr, any::<u8>()).prop_map(|(addr, prefix_len)| fnet::Subnet { addr, prefix_len })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn guest_info_of_fuchsia_virtualization(value in guest_info()) {
        check(value);
    }

    #[test]
    fn guest_config_of_fuchsia_virtualization(value in guest_config()) {
        check(value);
    }

    #[test]
    fn node_attributes_of_fuchsia_io(value in attributes()) {
        check(value);
    }

    #[test]
    fn dictionary_of_fuchsia_data(value in dictionary()) {
        check(value);
    }

    #[test]
    fn subnet_of_fuchsia_net(value in subnet()) {
        check(value);
    }
}
