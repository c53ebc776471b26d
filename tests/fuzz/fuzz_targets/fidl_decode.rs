//! Any bytes and any handles as the body of a message of the real libraries: decoding must not
//! panic or leak a handle, and what it accepts must have one encoding.

#![no_main]

use fidl::encoding::{Decoder, Encoder, WireType};
use fidl::{
    AsHandleRef as _, EventPair, HandleBased as _, HandleInfo, HandleOp, ObjectType, Rights,
    Signals, Time,
};
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_component_runner as frunner;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirtualization;
use fidl_test_wire as wire;
use libfuzzer_sys::fuzz_target;

const TYPES: [ObjectType; 6] = [
    ObjectType::CHANNEL,
    ObjectType::EVENT,
    ObjectType::EVENTPAIR,
    ObjectType::SOCKET,
    ObjectType::VMO,
    ObjectType::GUEST,
];

/// Handles of any types as far as the decoder can tell; each is one end of an event pair, whose
/// other end tells whether it was closed.
fn handles(choices: &[u8]) -> (Vec<HandleInfo>, Vec<EventPair>) {
    choices
        .iter()
        .map(|choice| {
            let (handle, witness) = EventPair::create();
            let object_type = TYPES[usize::from(*choice) % TYPES.len()];
            let rights =
                if choice & 0x80 == 0 { Rights::from_bits_retain(0xf00f) } else { Rights::NONE };
            (HandleInfo::new(handle.into_handle(), object_type, rights), witness)
        })
        .unzip()
}

fn check<T: WireType<Owned = T>>(bytes: &[u8], choices: &[u8]) {
    let (mut infos, witnesses) = handles(choices);
    if let Ok(value) = Decoder::decode_all::<T>(bytes, &mut infos) {
        // Unknown members of unions cannot be encoded again; other values can.
        if let Ok((again, dispositions)) = Encoder::encode_all::<T>(value) {
            assert!(again.len() <= bytes.len());
            let mut infos: Vec<HandleInfo> = dispositions
                .into_iter()
                .filter_map(|disposition| match disposition.handle_op {
                    HandleOp::Move(handle) => {
                        let (object_type, rights) = (disposition.object_type, disposition.rights);
                        let rights =
                            if rights == Rights::SAME_RIGHTS { Rights::NONE } else { rights };
                        Some(HandleInfo::new(handle, object_type, rights))
                    }
                    HandleOp::Duplicate(_) => None,
                })
                .collect();
            let value =
                Decoder::decode_all::<T>(&again, &mut infos).expect("what we encode decodes");
            let (once_more, _) = Encoder::encode_all::<T>(value).expect("what we decode encodes");
            assert_eq!(again, once_more);
        }
    }
    drop(infos);
    for witness in witnesses {
        let signals = witness.wait_handle(Signals::EVENTPAIR_PEER_CLOSED, Time::INFINITE_PAST);
        assert!(signals.is_ok(), "a handle leaked");
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(([which, count], rest)) = input.split_first_chunk::<2>() else { return };
    let Some((choices, bytes)) = rest.split_at_checked(usize::from(count % 8)) else { return };
    match which % 10 {
        0 => check::<fvirtualization::GuestConfig>(bytes, choices),
        1 => check::<fvirtualization::GuestInfo>(bytes, choices),
        2 => check::<frunner::ComponentStartInfo>(bytes, choices),
        3 => check::<frunner::ComponentControllerOnPublishDiagnosticsRequest>(bytes, choices),
        4 => check::<fio::DirectoryOpenRequest>(bytes, choices),
        5 => check::<fio::NodeAttributes2>(bytes, choices),
        6 => check::<fdecl::Offer>(bytes, choices),
        7 => check::<wire::Everything>(bytes, choices),
        8 => check::<wire::Handles>(bytes, choices),
        _ => check::<wire::HandleTable>(bytes, choices),
    }
});
