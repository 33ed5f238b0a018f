//! What every [`Store`](hawser_store::Store) keeps to, run against both engines; and what each must survive.

mod basics;
mod concurrency;
mod crash;
mod embedded_only;
mod engines;
mod etcd_only;
mod watching;

/// Makes one test per engine of each function; etcd's are skipped, in print, where etcd is not installed.
#[macro_export]
macro_rules! for_both_engines {
    ($($claim:ident),* $(,)?) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    super::$claim($crate::engines::Engine::embedded().await).await;
                }
            )*
        }
        mod etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    let Some(engine) = $crate::engines::Engine::etcd().await else { return };
                    super::$claim(engine).await;
                }
            )*
        }
    };
}
