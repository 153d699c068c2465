#[path = "../tests/common/mod.rs"]
mod common;

#[tokio::main]
async fn main() {
    let lab = common::lab_with(|config| config.operation_deadline = std::time::Duration::from_secs(3)).await;
    println!("{} {}", lab.listen().await, lab.root);
    std::future::pending::<()>().await;
}
