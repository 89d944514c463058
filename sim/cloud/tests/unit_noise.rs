//! Requests that follow no schema, over loopback: whatever comes, the answer is a whole error and the emulator goes on.

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use loden_sim_cloud::run::bind;
    use loden_sim_cloud::topology::Config;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const ACTIONS: [&str; 8] = [
        "CreateRouteTable",
        "DeleteRouteTable",
        "AssociateRouteTable",
        "UnassociateRouteTable",
        "GetVpcRouteEntrySummary",
        "CreateRouteEntries",
        "DescribeRouteEntryList",
        "Nonsense",
    ];
    const PARTS: [&str; 16] = [
        "&",
        "=",
        "%",
        "%ff",
        "%00",
        ".1.",
        "..",
        "RouteEntries",
        "RouteTableId=vtb-loden",
        "Version=2016-04-28",
        "Timestamp=0",
        "Signature=",
        "99999999999999999999",
        "%F0%9F%A6%80",
        "AccessKeyId=testid",
        "+",
    ];

    /// Numbers that look random and are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn roll<'a, T>(&mut self, of: &'a [T]) -> &'a T {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = usize::try_from(self.0 >> 33).unwrap() % of.len();
            &of[index]
        }

        fn noise(&mut self) -> String {
            let length = *self.roll(&[0, 1, 2, 5, 9, 30]);
            (0..length).map(|_| *self.roll(&PARTS)).collect()
        }
    }

    async fn exchange(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn noise_gets_a_whole_error() {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { api: free, metadata: free, control: free, ..Config::default() };
        let bound = bind(config).await.unwrap();
        let at = bound.endpoints().clone();
        let handle = bound.handle();
        let serving = tokio::spawn(bound.serve());
        let before = handle.snapshot();
        let mut dice = Dice(20_260);
        for _ in 0..400 {
            let method = dice.roll(&["GET", "POST", "PUT", "DELETE", "PATCH"]);
            let query = format!("Action={}&{}", dice.roll(&ACTIONS), dice.noise());
            let body = dice.noise();
            let kind = dice.roll(&["application/x-www-form-urlencoded", "application/json", "x/y"]);
            let authorization = dice.roll(&[
                "",
                "Authorization: ACS3-HMAC-SHA256 Credential=testid,SignedHeaders=host,Signature=00\r\n",
                "Authorization: ,,,==\r\nx-acs-date: yesterday\r\n",
            ]);
            let request = format!(
                "{method} /?{query} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: {kind}\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let answer = exchange(at.api, &request).await;
            let (head, body) =
                answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request:?}: {answer:?}"));
            assert!(head.starts_with("HTTP/1.1 4"), "{request:?}: {head}");
            let error: serde_json::Value = serde_json::from_str(body).unwrap();
            for field in ["Code", "Message", "RequestId", "HostId"] {
                assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{request:?}: {body}");
            }
        }
        assert_eq!(handle.snapshot(), before, "nobody without a key changes anything");
        assert!(!serving.is_finished());
        serving.abort();
    }
}
