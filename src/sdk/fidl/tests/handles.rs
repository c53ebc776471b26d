//! Handles on the wire: types and rights, and that none is leaked whatever the message is.

use fidl::encoding::{Decoder, Encoder};
use fidl::{
    AsHandleRef as _, Error, Event, Handle, HandleBased as _, HandleInfo, HandleOp, ObjectType,
    Rights, Signals, Socket, Time,
};
use fidl_test_wire::*;

const EVENT_RIGHTS: Rights = Rights::TRANSFER
    .union(Rights::DUPLICATE)
    .union(Rights::WAIT)
    .union(Rights::INSPECT)
    .union(Rights::SIGNAL);

fn info(handle: impl Into<Handle>, object_type: ObjectType, rights: Rights) -> HandleInfo {
    HandleInfo::new(handle.into(), object_type, rights)
}

/// One end of a pair, and the other to see it close.
fn tracked() -> (Socket, Socket) {
    Socket::create_stream()
}

#[track_caller]
fn assert_closed(witness: &Socket) {
    assert_eq!(
        witness
            .wait_handle(Signals::SOCKET_PEER_CLOSED, Time::INFINITE_PAST)
            .map(|s| s.contains(Signals::SOCKET_PEER_CLOSED)),
        Ok(true),
        "the handle leaked"
    );
}

fn table_bytes(num_handles: u8) -> Vec<u8> {
    // A table with one member: ordinal 9, inline, unknown to everybody.
    let mut bytes = vec![0; 16 + 9 * 8];
    bytes[0] = 9;
    bytes[8..16].fill(0xff);
    bytes[16 + 64..].copy_from_slice(&[1, 2, 3, 4, num_handles, 0, 1, 0]);
    bytes
}

#[test]
fn handles_arrive_with_type_and_rights() {
    let (event, reduced) = (Event::create(), Event::create());
    let koid = reduced.get_koid().unwrap();
    let value = Handles {
        any: Event::create().into_handle(),
        event,
        reduced,
        absent: None,
        more: Vec::new(),
    };
    let (bytes, dispositions) = Encoder::encode_all::<Handles>(value).unwrap();
    assert_eq!(bytes[..16], [[0xff; 12].as_slice(), &[0; 4]].concat());
    let types: Vec<_> = dispositions.iter().map(|d| (d.object_type, d.rights)).collect();
    assert_eq!(
        types,
        [
            (ObjectType::NONE, Rights::SAME_RIGHTS),
            (ObjectType::EVENT, Rights::SAME_RIGHTS),
            (ObjectType::EVENT, Rights::WAIT | Rights::TRANSFER),
        ]
    );
    let mut infos: Vec<HandleInfo> = dispositions
        .into_iter()
        .map(|d| match d.handle_op {
            HandleOp::Move(handle) => info(handle, ObjectType::EVENT, EVENT_RIGHTS),
            HandleOp::Duplicate(_) => panic!("handles are moved"),
        })
        .collect();
    let decoded = Decoder::decode_all::<Handles>(&bytes, &mut infos).unwrap();
    let basic = decoded.reduced.basic_info().unwrap();
    assert_eq!(basic.koid, koid);
    assert_eq!(basic.rights, Rights::WAIT | Rights::TRANSFER, "other rights are taken away");
    assert_eq!(decoded.event.basic_info().unwrap().rights, EVENT_RIGHTS);
}

#[test]
fn wrong_handles_are_rejected_and_closed() {
    let bytes = |absent: u8, more: u8| {
        let mut bytes = vec![0xff; 12];
        bytes.extend([[absent; 4], [0; 4]].concat());
        bytes.truncate(16);
        bytes.extend([more, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0xff; 8]);
        bytes.extend(std::iter::repeat_n(0xff, usize::from(more) * 4));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let event = || info(Event::create(), ObjectType::EVENT, EVENT_RIGHTS);
    let decode = |bytes: &[u8], mut infos: Vec<HandleInfo>| {
        Decoder::decode_all::<Handles>(bytes, &mut infos).map(drop)
    };
    assert_eq!(decode(&bytes(0, 0), vec![event(), event(), event()]), Ok(()));

    let (socket, witness) = tracked();
    let wrong_type = vec![event(), info(socket, ObjectType::SOCKET, EVENT_RIGHTS), event()];
    let error =
        Error::IncorrectHandleSubtype { expected: ObjectType::EVENT, received: ObjectType::SOCKET };
    assert_eq!(decode(&bytes(0, 0), wrong_type), Err(error));
    assert_closed(&witness);

    let few = info(Event::create(), ObjectType::EVENT, Rights::TRANSFER);
    assert_eq!(
        decode(&bytes(0, 0), vec![event(), event(), few]),
        Err(Error::MissingExpectedHandleRights { missing_rights: Rights::WAIT })
    );
    assert_eq!(decode(&bytes(0, 0), vec![event(), event()]), Err(Error::OutOfHandles));
    assert_eq!(
        decode(&bytes(0, 0), vec![event(), event(), event(), event()]),
        Err(Error::ExtraHandles)
    );
    assert_eq!(
        decode(&bytes(1, 0), vec![event(), event(), event(), event()]),
        Err(Error::InvalidPresenceIndicator)
    );

    // The first of two extra handles is taken before the message turns out to be wrong.
    let (socket, witness) = tracked();
    let (socket2, witness2) = tracked();
    let infos = vec![
        info(socket, ObjectType::SOCKET, EVENT_RIGHTS),
        event(),
        info(socket2, ObjectType::SOCKET, EVENT_RIGHTS),
    ];
    assert!(decode(&bytes(0, 0), infos).is_err());
    assert_closed(&witness);
    assert_closed(&witness2);
}

#[test]
fn unknown_members_have_their_handles_closed() {
    let (socket, witness) = tracked();
    let mut infos = vec![info(socket, ObjectType::SOCKET, EVENT_RIGHTS)];
    let decoded = Decoder::decode_all::<HandleTable>(&table_bytes(1), &mut infos).unwrap();
    assert_eq!(decoded, HandleTable::default());
    assert_closed(&witness);

    let (socket, witness) = tracked();
    let mut infos = vec![info(socket, ObjectType::SOCKET, EVENT_RIGHTS)];
    let union = [9, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5, 1, 0, 1, 0];
    assert!(Decoder::decode_all::<HandleUnion>(&union, &mut infos).unwrap().is_unknown());
    assert_closed(&witness);
}

#[test]
fn an_invalid_handle_cannot_be_sent_where_one_must_be() {
    let value = HandleUnion::Event(Event::from(Handle::invalid()));
    assert_eq!(Encoder::encode_all::<HandleUnion>(value).unwrap_err(), Error::NotNullable);
}

#[test]
fn a_value_that_cannot_be_encoded_closes_its_handles() {
    let (socket, witness) = tracked();
    let value = Handles {
        any: socket.into_handle(),
        event: Event::from(Handle::invalid()),
        reduced: Event::create(),
        absent: None,
        more: Vec::new(),
    };
    assert_eq!(Encoder::encode_all::<Handles>(value).unwrap_err(), Error::NotNullable);
    assert_closed(&witness);
}
