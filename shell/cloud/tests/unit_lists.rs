//! What the cloud answers is whole or an error: pages that overlap, go in circles, break off or pass something over, and objects that are half made.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use loden_cloud::{AccessKey, Client, Credentials, Endpoint, Endpoints};
use loden_routes::model::{InstanceId, RouteEntry, VpcId, VpcRouteTableId};
use loden_routes::port::{Failure, ReadRouteTables};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that knows nothing of the API: it gives these answers, one after the other, and remembers what it was asked.
struct Script {
    client: Client,
    asked: Arc<Mutex<Vec<String>>>,
    left: Arc<Mutex<VecDeque<(u16, Value)>>>,
}

impl Script {
    async fn of(answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let left = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answers, questions) = (Arc::clone(&left), Arc::clone(&asked));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&answers), Arc::clone(&questions)));
            }
        });
        let key = AccessKey { id: "id".to_owned(), secret: "secret".to_owned(), token: None };
        let endpoints = Endpoints::all_at(Endpoint { tls: false, authority });
        let client = Client::new("cn-hangzhou", endpoints, Credentials::fixed(key, "a test")).unwrap();
        Self { client, asked, left }
    }

    async fn entries(&self) -> Result<Vec<RouteEntry>, Failure> {
        self.client.list_entries(&VpcRouteTableId::from("vtb-1")).await
    }

    fn assert_all_given(&self) {
        assert!(self.left.lock().unwrap().is_empty(), "asked for less than was expected");
    }
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
    questions: Arc<Mutex<Vec<String>>>,
) {
    let mut received = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut received).await {
        let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(received.drain(..end + 4).collect()).unwrap();
        questions.lock().unwrap().push(head.lines().next().unwrap().to_owned());
        let (status, body) = answers.lock().unwrap().pop_front().expect("asked for more than was expected");
        let body = body.to_string();
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn entry(number: u32) -> Value {
    json!({
        "RouteTableId": "vtb-1", "RouteEntryId": format!("rte-{number}"), "Type": "Custom", "Status": "Available",
        "DestinationCidrBlock": format!("10.0.{number}.0/24"),
        "NextHops": {"NextHop": [{"NextHopId": format!("i-{number}"), "NextHopType": "Instance"}]},
    })
}

fn page(numbers: &[u32], total: u32, next: &str) -> (u16, Value) {
    let entries: Vec<Value> = numbers.iter().copied().map(entry).collect();
    (
        200,
        json!({"RequestId": "R", "TotalCount": total, "NextToken": next, "RouteEntrys": {"RouteEntry": entries}}),
    )
}

fn ids(entries: &[RouteEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn pages_are_put_together_and_what_moved_between_them_is_there_once() {
    let script = Script::of([page(&[1, 2], 3, "second"), page(&[2, 3], 3, "")]).await;
    assert_eq!(ids(&script.entries().await.unwrap()), ["rte-1", "rte-2", "rte-3"]);
    let asked = script.asked.lock().unwrap().clone();
    assert!(!asked[0].contains("NextToken") && asked[1].contains("NextToken=second"), "{asked:?}");
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn an_entry_that_is_listed_twice_does_not_hide_one_that_was_passed_over() {
    let script = Script::of([page(&[1, 2], 3, "second"), page(&[2], 3, ""), page(&[1, 2, 3], 3, "")]).await;
    assert_eq!(ids(&script.entries().await.unwrap()), ["rte-1", "rte-2", "rte-3"], "read again");
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn fewer_than_the_api_counts_is_an_error_and_never_a_shorter_list() {
    let script = Script::of([page(&[1], 2, ""), page(&[1], 2, ""), page(&[1], 2, "")]).await;
    let error = script.entries().await.unwrap_err();
    assert!(error.message.contains("vtb-1 is incomplete"), "{error}");
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn a_token_that_leads_back_is_an_error() {
    let script = Script::of([page(&[1], 9, "again"), page(&[1], 9, "again")]).await;
    let error = script.entries().await.unwrap_err();
    assert!(error.message.contains("the same page twice"), "{error}");
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn a_page_that_fails_fails_the_list() {
    let refused = (400, json!({"Code": "InvalidNextToken", "Message": "gone", "RequestId": "R2"}));
    let script = Script::of([page(&[1], 2, "second"), refused]).await;
    let error = script.entries().await.unwrap_err();
    assert_eq!((error.code.as_str(), error.request_id.as_str()), ("InvalidNextToken", "R2"));
    let script = Script::of([page(&[1], 2, "second"), (200, json!({"RequestId": "R"}))]).await;
    assert!(script.entries().await.unwrap_err().message.contains("cannot be read"));
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn an_entry_without_a_range_counts_and_is_nobodys_conflict() {
    let (status, mut answer) = page(&[1, 2], 2, "");
    answer["RouteEntrys"]["RouteEntry"][0]["DestinationCidrBlock"] = "pl-prefixes".into();
    let script = Script::of([(status, answer)]).await;
    assert_eq!(ids(&script.entries().await.unwrap()), ["rte-2"]);
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn tables_that_are_counted_and_not_shown_are_an_error() {
    let tables = |ids: &[&str]| {
        let tables: Vec<Value> = ids
            .iter()
            .map(|id| {
                json!({"RouteTableId": id, "RouteTableType": "Custom", "VpcId": "vpc-1", "VSwitchIds": {"VSwitchId": []},
                       "Status": "Available"})
            })
            .collect();
        let list = json!({"RouterTableListType": tables});
        (
            200,
            json!({"RequestId": "R", "PageSize": 50, "PageNumber": 1, "TotalCount": 2, "RouterTableList": list}),
        )
    };
    let vpc = VpcId::from("vpc-1");
    let script = Script::of([tables(&["vtb-1"]), tables(&[])]).await;
    let error = script.client.list_tables(&vpc).await.unwrap_err();
    assert!(error.message.contains("vpc-1 is incomplete"), "{error}");
    script.assert_all_given();
    let script = Script::of([tables(&["vtb-1"]), tables(&["vtb-2"])]).await;
    assert_eq!(script.client.list_tables(&vpc).await.unwrap().len(), 2);
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn an_instance_that_is_half_made_is_not_there_and_hides_no_other() {
    let whole = json!({
        "InstanceId": "i-1", "VpcAttributes": {"VSwitchId": "vsw-1"},
        "NetworkInterfaces": {"NetworkInterface": [{"NetworkInterfaceId": "eni-1", "Type": "Primary"}]},
    });
    let young = json!({"InstanceId": "i-2"});
    let answer = json!({"RequestId": "R", "Instances": {"Instance": [young, whole]}});
    let script = Script::of([(200, answer)]).await;
    let ids = ["i-1", "i-2"].map(InstanceId::from);
    let found = script.client.describe_instances(&ids).await.unwrap();
    assert_eq!(found.iter().map(|instance| instance.primary_eni.as_str()).collect::<Vec<_>>(), ["eni-1"]);
    script.assert_all_given();
}

#[tokio::test(flavor = "current_thread")]
async fn a_check_is_off_only_where_that_is_seen() {
    let sets = json!([
        {"NetworkInterfaceId": "eni-off", "Type": "Primary", "SourceDestCheck": false},
        {"NetworkInterfaceId": "eni-on", "Type": "Primary", "SourceDestCheck": true},
    ]);
    let answer = json!({"RequestId": "R", "NetworkInterfaceSets": {"NetworkInterfaceSet": sets}});
    let script = Script::of([(200, answer)]).await;
    let asked = ["eni-off", "eni-on", "eni-unseen"].map(str::to_owned);
    assert_eq!(script.client.source_dest_check_on(&asked).await.unwrap(), ["eni-on", "eni-unseen"]);
    script.assert_all_given();
}
