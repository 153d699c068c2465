//! Which names below the preview suffix there is room for.

mod common;

use common::Lab;
use common::domains::{machine, map, provable, prove, public};
use serde_json::json;
use ulid::Ulid;
use warren_model::AccountId;
use warren_model::domain::MAX_DOMAINS_OF_SERVER;
use warren_store::{Store, TxnBuilder, schema};

/// A server that publishes, and two accounts with a machine each.
async fn two() -> (Lab, String, String) {
    let lab = public().await;
    let (one, two) = (lab.account("one").await, lab.account("two").await);
    machine(&lab, &one, "web").await;
    machine(&lab, &two, "web").await;
    (lab, one, two)
}

async fn unmap(lab: &Lab, key: &str, host: &str) {
    lab.delete(key, &format!("/v1/domains/{host}")).await.expect(204);
}

#[tokio::test]
async fn above_and_below_somebody_elses_preview_there_is_no_room_for_others() {
    let lab = public().await;
    let other = lab.account("other").await;
    machine(&lab, &other, "web").await;
    map(&lab, &other, "appx.preview.example").await.expect(201);
    map(&lab, &lab.root, "app.preview.example").await.expect(201);
    map(&lab, &other, "x.app.preview.example").await.expect(409).refused("domain_taken");
    map(&lab, &other, "a.b.app.preview.example").await.expect(409).refused("domain_taken");
    map(&lab, &lab.root, "x.app.preview.example").await.expect(201);
    map(&lab, &lab.root, "x.y.preview.example").await.expect(201);
    map(&lab, &other, "y.preview.example").await.expect(409).refused("domain_taken");
    map(&lab, &other, "xapp.preview.example").await.expect(201);
}

#[tokio::test]
async fn of_two_who_want_a_name_and_one_below_it_at_once_one_gets_it() {
    let lab = public().await;
    let keys = [lab.account("one").await, lab.account("two").await];
    for key in &keys {
        machine(&lab, key, "web").await;
    }
    for round in 0..10 {
        let (above, below) = (format!("n{round}.preview.example"), format!("x.n{round}.preview.example"));
        let (one, two) = tokio::join!(map(&lab, &keys[0], &above), map(&lab, &keys[1], &below));
        let mut statuses = [one.status, two.status];
        statuses.sort();
        assert_eq!(statuses, [201, 409], "{} {}", one.text, two.text);
    }
}

#[tokio::test]
async fn beside_somebody_elses_preview_there_is_no_room_below_the_same_label() {
    let (lab, one, two) = two().await;
    map(&lab, &one, "x.y.preview.example").await.expect(201);
    let refused = map(&lab, &two, "z.y.preview.example").await.expect(409).refused("domain_taken");
    assert!(!refused.text.contains("x.y"), "{}", refused.text);
    // Who has a name below the label may take the label, and nobody comes in between.
    for round in 0..10 {
        let label = format!("n{round}.preview.example");
        map(&lab, &one, &format!("a.{label}")).await.expect(201);
        let below = format!("b.{label}");
        let (above, beside) = tokio::join!(map(&lab, &one, &label), map(&lab, &two, &below));
        assert_eq!((above.status, beside.status), (201, 409), "{} {}", above.text, beside.text);
    }
    unmap(&lab, &one, "x.y.preview.example").await;
    map(&lab, &two, "z.y.preview.example").await.expect(201);
}

#[tokio::test]
async fn of_two_who_want_names_below_one_label_at_once_one_gets_it() {
    let (lab, one, two) = two().await;
    for round in 0..10 {
        let (first, second) = (format!("a.n{round}.preview.example"), format!("b.n{round}.preview.example"));
        let (first, second) = tokio::join!(map(&lab, &one, &first), map(&lab, &two, &second));
        let mut statuses = [first.status, second.status];
        statuses.sort();
        assert_eq!(statuses, [201, 409], "{} {}", first.text, second.text);
    }
}

#[tokio::test]
async fn a_label_is_somebodys_as_long_as_a_name_of_it_is() {
    let (lab, one, two) = two().await;
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("{name}.x.preview.example"));
    for _ in 0..10 {
        map(&lab, &one, &a).await.expect(201);
        let (_, mapped) = tokio::join!(unmap(&lab, &one, &a), map(&lab, &one, &b));
        mapped.expect(201);
        map(&lab, &two, &c).await.expect(409).refused("domain_taken");
        map(&lab, &one, &c).await.expect(201);
        tokio::join!(unmap(&lab, &one, &b), unmap(&lab, &one, &c));
        assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
    }
    // A change of where it leads keeps it, and with the machine all of it goes.
    for host in [&a, &b] {
        map(&lab, &one, host).await.expect(201);
    }
    lab.patch(&one, &format!("/v1/domains/{a}"), json!({ "port": 5432 })).await.expect(200);
    map(&lab, &two, &c).await.expect(409).refused("domain_taken");
    lab.delete(&one, "/v1/machines/web").await.expect(204);
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
    map(&lab, &two, &c).await.expect(201);
}

#[tokio::test]
async fn names_from_before_there_were_labels_keep_others_away_all_the_same() {
    let (lab, one, two) = two().await;
    let label = schema::domain_label(&"x.preview.example".parse().unwrap());
    map(&lab, &one, "a.b.x.preview.example").await.expect(201);
    TxnBuilder::new().delete(&label).commit(&*lab.store).await.unwrap();
    for host in ["x.preview.example", "b.x.preview.example", "c.a.b.x.preview.example", "y.x.preview.example"] {
        map(&lab, &two, host).await.expect(409).refused("domain_taken");
    }
    map(&lab, &one, "y.x.preview.example").await.expect(201);
    assert_eq!(lab.keys_below("domain-label/").await, [label.as_str()]);
    for host in ["a.b.x.preview.example", "y.x.preview.example"] {
        unmap(&lab, &one, host).await;
    }
    // One that has outlived its names is nobody's.
    let gone = AccountId::from_ulid(Ulid::from_parts(1, 1));
    TxnBuilder::new().put(&label, &gone).unwrap().commit(&*lab.store).await.unwrap();
    map(&lab, &two, "y.x.preview.example").await.expect(201);
    map(&lab, &one, "x.preview.example").await.expect(409).refused("domain_taken");
}

#[tokio::test]
async fn the_endpoint_of_the_tunnels_is_nobodys_while_they_do_not_listen() {
    let lab = public().await;
    lab.tunnels.set_endpoint("in.vpn.preview.example:51820");
    *lab.tunnels.gateway.lock().unwrap() = Err("0.0.0.0:51820 is in use".into());
    for name in ["vpn", "in.vpn", "a.in.vpn", "b.vpn"] {
        let refused = map(&lab, &lab.root, &format!("{name}.preview.example")).await.expect(403);
        refused.refused("domain_not_verified");
    }
    map(&lab, &lab.root, "vpn2.preview.example").await.expect(201);
}

#[tokio::test]
async fn below_the_suffix_who_comes_first_has_the_name() {
    let lab = public().await;
    let other = lab.account("other").await;
    machine(&lab, &other, "web").await;
    let first = map(&lab, &lab.root, "deep.down.preview.example").await.expect(201);
    let second = map(&lab, &other, "deep.down.preview.example").await.expect(409).refused("domain_taken");
    for hidden in [first.at("/id"), first.at("/machine/id"), first.at("/created_by"), "default".to_owned()] {
        assert!(!second.text.contains(&hidden), "{}", second.text);
    }
    let own = map(&lab, &lab.root, "deep.down.preview.example").await.expect(409).refused("domain_taken");
    assert!(own.at("/detail").contains("8080"), "{}", own.text);

    for path in ["/v1/domains/deep.down.preview.example".to_owned(), format!("/v1/domains/{}", first.at("/id"))] {
        lab.get(&other, &path).await.expect(404).refused("not_found");
        lab.patch(&other, &path, json!({ "port": 5432 })).await.expect(404).refused("not_found");
        lab.delete(&other, &path).await.expect(404).refused("not_found");
    }
    assert_eq!(lab.get(&other, "/v1/domains").await.expect(200).body["items"], json!([]));

    lab.delete(&lab.root, "/v1/domains/deep.down.preview.example").await.expect(204);
    map(&lab, &other, "deep.down.preview.example").await.expect(201);
}

#[tokio::test]
async fn what_clients_take_for_the_operators_own_is_nobody_elses() {
    let (lab, dns) = provable().await;
    let other = lab.account("other").await;
    machine(&lab, &other, "web").await;
    lab.tunnels.set_endpoint("vpn.preview.example:51820");
    for name in ["www", "api", "mail", "wpad", "autoconfig", "a.www", "vpn", "a.vpn"] {
        let refused = map(&lab, &lab.root, &format!("{name}.preview.example")).await.expect(403);
        let refused = refused.refused("domain_not_verified");
        assert!(refused.at("/detail").contains("kept for whoever owns preview.example"), "{}", refused.text);
    }
    map(&lab, &lab.root, "_dmarc.preview.example").await.expect(422).refused("domain_invalid");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
    map(&lab, &lab.root, "www.shop.preview.example").await.expect(201);
    // Somewhere else, the endpoint keeps nothing.
    lab.tunnels.set_endpoint("vpn.example:51820");
    map(&lab, &lab.root, "vpn.preview.example").await.expect(201);
    // Who proves that the suffix, or the name, is theirs is not refused it.
    prove(&lab, &dns, &lab.root, "preview.example").await;
    assert_eq!(map(&lab, &lab.root, "www.preview.example").await.expect(201).at("/proof"), "txt");
    map(&lab, &other, "api.preview.example").await.expect(403).refused("domain_not_verified");
    prove(&lab, &dns, &other, "api.preview.example").await;
    map(&lab, &other, "api.preview.example").await.expect(201);
}

#[tokio::test]
async fn a_server_has_at_most_eight_thousand_domains_and_what_they_are_is_not_asked() {
    let lab = public().await;
    let made = map(&lab, &lab.root, "a.preview.example").await.expect(201);
    let mut txn = warren_store::Txn::default();
    for n in 1..MAX_DOMAINS_OF_SERVER {
        let key = schema::domain(&format!("n{n}.example").parse().unwrap()).as_str().to_owned();
        txn.ops.push(warren_store::Op::Put { key, value: b"unreadable".to_vec(), lease: None });
    }
    lab.store.txn(txn).await.unwrap();
    let refused = map(&lab, &lab.root, "b.preview.example").await.expect(409).refused("quota_exceeded");
    assert!(refused.at("/detail").contains("a server has at most"), "{}", refused.text);
    lab.delete(&lab.root, &format!("/v1/domains/{}", made.at("/host"))).await.expect(204);
    map(&lab, &lab.root, "b.preview.example").await.expect(201);
}

#[tokio::test]
async fn of_two_who_want_a_name_at_once_one_gets_it() {
    let lab = public().await;
    let keys = [lab.account("one").await, lab.account("two").await];
    for key in &keys {
        machine(&lab, key, "web").await;
    }
    for round in 0..5 {
        let host = format!("n{round}.preview.example");
        let (one, two) = tokio::join!(map(&lab, &keys[0], &host), map(&lab, &keys[1], &host));
        let mut statuses = [one.status, two.status];
        statuses.sort();
        assert_eq!(statuses, [201, 409], "{} {}", one.text, two.text);
    }
}
