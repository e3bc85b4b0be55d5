module throng/bench/peers/go-echo

go 1.19
