//! What one request may hold, whatever it asks for.

mod common;

use common::*;
use hawser_api::{Error, resource::Target};
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    registry::{DeleteRequest, ListRequest, Listed, VersionMatch},
};

async fn list(running: &Running, request: &ListRequest) -> Result<Listed, Error> {
    let admin = User::named("admin", &[SYSTEM_MASTERS]);
    let call = running.server.enter(&admin, "list", Target::collection(CONFIG_MAPS, Some("shop")), "")?;
    running.server.list(&call, request).await
}

#[tokio::test]
async fn a_list_of_an_old_version_is_refused_whole_and_given_in_pages() {
    let directory = Directory::new();
    let bound = |config: &mut hawser_apiserver::Config| config.limits.old_list_bytes = 64 << 10;
    let running = start_over(embedded(&directory).await, bound).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for number in 0..30 {
        let data = "x".repeat(4 << 10);
        admin
            .create(&CONFIG_MAPS, Some("shop"), config_map(&format!("c{number:02}"), &data))
            .await
            .expect("made");
    }
    let (_, version) = admin.list(&CONFIG_MAPS, Some("shop"), "").await;
    admin.delete(&CONFIG_MAPS, Some("shop"), "c00", None).await.expect("deleted");
    let exact = ListRequest {
        resource_version: version,
        version_match: VersionMatch::Exact,
        ..ListRequest::default()
    };
    let refused = list(&running, &exact).await.err().expect("too much at once");
    assert_eq!(refused.code(), 429, "{refused}");
    assert!(refused.message().contains("in pages (limit)"), "{refused}");
    // More pages than fit together: each gives back what it held.
    let mut page = ListRequest { limit: 7, ..exact };
    let mut seen = 0;
    loop {
        let listed = list(&running, &page).await.expect("a page");
        let next = listed.continue_token.clone();
        seen += listed.objects().count();
        if next.is_empty() {
            break;
        }
        page = ListRequest { limit: 7, continue_token: next, ..ListRequest::default() };
    }
    assert_eq!(seen, 30, "as they were");
    running.stop().await;
}

#[tokio::test]
async fn of_a_large_collection_that_is_deleted_only_the_number_is_told() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let delete = async || {
        let user = User::named("admin", &[SYSTEM_MASTERS]);
        let target = Target::collection(CONFIG_MAPS, Some("shop"));
        let call = running.server.enter(&user, "deletecollection", target, "").expect("admitted");
        let (list, request) = (ListRequest::default(), DeleteRequest::default());
        running.server.delete_collection(&call, &list, &request).await.expect("deleted")
    };
    for (size, count, shown) in [(1_000, 3, Some(3)), (1_000_000, 17, None)] {
        for number in 0..count {
            let object = config_map(&format!("c{number}"), &"x".repeat(size));
            admin.create(&CONFIG_MAPS, Some("shop"), object).await.expect("made");
        }
        let deleted = delete().await;
        assert_eq!((deleted.count, deleted.objects.map(|objects| objects.len())), (count, shown));
        assert!(admin.list(&CONFIG_MAPS, Some("shop"), "").await.0.is_empty());
    }
    running.stop().await;
}
